"""Lets `python -m owner_node` do what `owner-node` does."""

from owner_node.cli import main

main()
