"""The benchmarks behind scripts/bench: each measures in one run what it compares, and reports ratios of medians."""
