"""The optimizers that step from a round's base to its release, and the state that they keep from step to step."""
