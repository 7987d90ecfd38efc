"""A model's bytes: its schema, its file, the encodings of an update, the check of its values."""
