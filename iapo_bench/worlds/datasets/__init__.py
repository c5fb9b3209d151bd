"""One file per dataset, found by its name."""
