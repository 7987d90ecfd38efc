"""Lets `python -m cairn` do what `cairn` does."""

from cairn.cli.main import main

main()
