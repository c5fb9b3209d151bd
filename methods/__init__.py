"""IAPO, and whatever method a user drops in: one file, one class with the interface of `iapo_bench.method.Method`."""
