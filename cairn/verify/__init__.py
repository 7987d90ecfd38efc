"""Checks of runs, statements and ledgers, offline."""
