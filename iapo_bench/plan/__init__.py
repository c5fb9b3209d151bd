"""Cost of a tier, estimated before it runs."""
