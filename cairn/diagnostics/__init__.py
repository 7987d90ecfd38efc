"""What can be checked of a node and its surroundings before it fails."""
