"""What a run happens on: ranks, GPU leases, provenance."""
