"""Settings: a module for each section, and the tier that assembles them. No module here needs torch at import.

A stage imports the section that it reads; the tier is for the workflow and the command line.
"""
