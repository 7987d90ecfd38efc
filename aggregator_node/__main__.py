"""Lets `python -m aggregator_node` do what `aggregator-node` does."""

from aggregator_node.cli import main

main()
