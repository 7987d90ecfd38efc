"""The weighted mean, the exact sums below it, and the memory that they use."""
