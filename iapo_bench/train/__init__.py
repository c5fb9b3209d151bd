"""The base, the training loop and the update, the same for every method."""
