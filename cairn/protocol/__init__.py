"""What the nodes say to each other: messages, statements, limits and reasons."""
