"""The shared core: everything that the methods have in common. It names no method.

Data flows one way: world -> rollout -> signals -> method (credit) -> update -> checkpoint, and separately
sample -> grade -> metrics -> tables and figures. No module imports a later one.
"""
