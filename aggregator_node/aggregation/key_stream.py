"""Random bits for noise: the key stream of AES-256 in counter mode under a key that nobody else has. Pure, but for `fresh_key`.

A key is for one release. Whoever does not know it cannot tell the stream from uniform bits (NIST SP 800-38A). It is neither
derived from anything nor written anywhere, so no seed, file or log gives the noise again.
"""

import secrets

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES256
from cryptography.hazmat.primitives.ciphers.modes import CTR
from numpy.typing import NDArray

_KEY_BYTES = 32
_BLOCK_BYTES = 16
_MOST_WORDS = 1 << 16  # that are made at once

Words = NDArray[np.uint64]


def fresh_key() -> bytes:
    """A key from the operating system's source."""
    return secrets.token_bytes(_KEY_BYTES)


class KeyStream:
    """The words of one key, in order, as little-endian 64-bit numbers. One call at a time."""

    def __init__(self, key: bytes) -> None:
        """`key` has 32 bytes."""
        self._cipher = Cipher(AES256(key), CTR(bytes(_BLOCK_BYTES))).encryptor()
        self._zeros = memoryview(bytes(8 * _MOST_WORDS))
        self._buffer = np.zeros(8 * _MOST_WORDS + _BLOCK_BYTES, np.uint8)  # the cipher wants room

    def words(self, count: int) -> Words:
        """The next words, at most 2**16; they last until the next call."""
        self._cipher.update_into(self._zeros[: 8 * count], self._buffer.data)
        return self._buffer[: 8 * count].view("<u8")

    def word(self) -> int:
        """The next word."""
        return int.from_bytes(self._cipher.update(bytes(8)), "little")

    def erase(self) -> None:
        """Overwrite the words that came last."""
        self._buffer.fill(0)
