"""The two clocks of a node, as one value that a test can replace."""

import time


class Clock:
    """Real time. Deadlines run on the monotonic clock, statements carry the wall clock's time."""

    def monotonic(self) -> float:
        """Seconds since some moment in the past; never goes backward."""
        return time.monotonic()

    def unix_ms(self) -> int:
        """Milliseconds since 1970, UTC."""
        return time.time_ns() // 1_000_000
