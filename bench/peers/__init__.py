"""The same work by other systems, each in an environment of its own."""
