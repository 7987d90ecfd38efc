"""Lets `python -m cairn` do what `cairn` does."""

from cairn.cli import main

main()
