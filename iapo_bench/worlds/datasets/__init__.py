"""One file a dataset, found by its name."""
