"""`python -m iapo_bench` is `iapo-bench`."""

from iapo_bench.cli import main

main()
