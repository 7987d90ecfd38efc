"""How a measurement fails: in one sentence, which the command line prints."""


class BenchFailed(Exception):
    """Something could not be measured; the text says what and why."""
