"""Checkpoints, where they come from, adapters and sharding."""
