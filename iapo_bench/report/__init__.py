"""One artefact, one module: tables, figures and the choice of settings."""
