"""The threads of a server, and how many calls they are for."""

from concurrent.futures import ThreadPoolExecutor

LONG_CALLS_OF_ONE_CALLER = 4  # a broken one may still be held when its repetition comes
SHORT_CALLS_OF_ONE_CALLER = 8
_MOST_SHORT_CALLS = 1024  # of all callers: each may hold a thread
_REFUSING_THREADS = 16


class Pools:
    """The threads of a server: as many as the calls that it may have under way, and some that refuse.

    A thread begins when it is needed.
    """

    def __init__(self, callers: int, long_callers: int) -> None:
        """For so many nodes that call at the same time, and so many of them that have streams."""
        most = _MOST_SHORT_CALLS // SHORT_CALLS_OF_ONE_CALLER
        self.short_calls = SHORT_CALLS_OF_ONE_CALLER * min(callers, most)
        self.long_calls = LONG_CALLS_OF_ONE_CALLER * long_callers
        self.short = ThreadPoolExecutor(self.short_calls + _REFUSING_THREADS, "call")
        self.long = ThreadPoolExecutor(self.long_calls + _REFUSING_THREADS, "stream")
