"""Takes a model's bytes as they arrive: counted, hashed, and kept in memory that is there already."""

import numpy as np
from blake3 import blake3

from cairn.errors import InvalidMessage


class PayloadReceiver:
    """Bytes on their way in. Where a transfer breaks off, what has arrived stays and the next goes on."""

    def __init__(self, total: int, hasher: blake3, into: memoryview | None) -> None:
        """Expect `total` bytes; `hasher` has seen what comes before them. Without `into` none is kept."""
        self.total = total
        self.offset = 0
        self._hasher = hasher
        # NumPy copies without holding Python's lock.
        self._into = None if into is None else np.frombuffer(into, np.uint8)

    def write(self, chunk: memoryview) -> None:
        """Take the next bytes. Raises InvalidMessage for more than were to come."""
        end = self.offset + len(chunk)
        if end > self.total:
            raise InvalidMessage(f"more bytes than the {self.total} that were to come")
        if self._into is not None:
            self._into[self.offset : end] = np.frombuffer(chunk, np.uint8)
        self._hasher.update(chunk)
        self.offset = end

    @property
    def missing(self) -> int:
        return self.total - self.offset

    def digest(self) -> bytes:
        """The digest of what has arrived."""
        return self._hasher.digest()
