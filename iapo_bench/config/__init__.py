"""Settings: a section a module, and the tier that assembles them. Nothing here imports torch.

A stage imports the section that it reads; the tier is for the workflow and the command line.
"""
