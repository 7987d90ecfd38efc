"""Measures Cairn: beside the limit of the machine it runs on, and beside its peers."""
