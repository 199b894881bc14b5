"""Benchmarks: same-run comparisons that print tables with ratios. `make bench` runs the ones that need no GPU."""
