"""Lets `python -m coordinator` do what `coordinator` does."""

from coordinator.cli import main

main()
