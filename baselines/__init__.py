"""Published methods that IAPO is compared with: one file, one class, one formula in its docstring."""
