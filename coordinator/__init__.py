"""The model owner: opens rounds and receives averages."""
