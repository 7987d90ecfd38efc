"""A job from Python, for a model owner's script or notebook: what `cairn.connect` and `cairn.sandbox` give."""
