"""IAPO, and methods that users add: one file, one class with the interface of `iapo_bench.method.Method`."""
