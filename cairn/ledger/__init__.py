"""The ledger that each node writes, and how its files are read."""
