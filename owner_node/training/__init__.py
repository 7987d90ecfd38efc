"""The process that runs the owner's task, and the node's side of it."""
