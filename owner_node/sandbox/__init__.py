"""The sandbox that a task runs in: which there is, and how a process enters it."""
