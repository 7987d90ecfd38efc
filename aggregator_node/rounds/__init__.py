"""Jobs and rounds: who is in, what has come, what may be released and recorded."""
