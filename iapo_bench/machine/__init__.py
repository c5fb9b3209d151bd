"""The machine of a run: ranks, GPU leases, provenance."""
