"""The data owner: trains on private data and pushes what it trained to the aggregator."""
