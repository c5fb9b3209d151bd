"""What a tier will take before it runs."""
