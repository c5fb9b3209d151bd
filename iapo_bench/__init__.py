"""The shared core: everything that every method has in common, and no method by name.

Data flows one way: world -> rollout -> signals -> method (credit) -> update -> checkpoint, and, apart from it,
sample -> grade -> metrics -> tables and figures. No module imports one that stands after it.
"""
