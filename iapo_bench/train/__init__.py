"""The base model, the training loop and the update, the same for every method."""
