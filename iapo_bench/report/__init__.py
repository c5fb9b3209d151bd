"""Tables, figures and the choice of settings: one module for each artefact."""
