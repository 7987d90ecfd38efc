"""Random numbers of the operating system for private training: Gaussian noise, and which records a step draws.

PyTorch's generator on the CPU takes 32 bits of its seed, however long that is, so its noise can be found out by trying
all seeds. Nothing here can be seeded.
"""

import math
import os
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Sampler

_PIECE = 1 << 20  # samples at a time: 8 MB of each intermediate
_SUMMED = 4


def gaussian(shape: torch.Size, std: float) -> Tensor:
    """Noise of this shape, in float64, on the CPU.

    Each value is the sum of four independent samples of Box and Muller, divided by 2: a single one can be told from the
    doubles that no other input gives (Holohan and Braghin 2021, arXiv 2107.10138, section 5.1, with n = 2).
    """
    noise = np.empty(math.prod(shape))
    for begin in range(0, len(noise), _PIECE):
        piece = noise[begin : begin + _PIECE]
        piece[:] = sum(_box_muller(len(piece)) for _ in range(_SUMMED)) * (std / math.sqrt(_SUMMED))
    return torch.from_numpy(noise).reshape(shape)


def _box_muller(count: int) -> NDArray[np.float64]:
    half = -(-count // 2)
    radius = np.sqrt(-2 * np.log(_uniform(half)))
    angle = 2 * np.pi * _uniform(half)
    return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:count]


def _uniform(count: int) -> NDArray[np.float64]:
    """Doubles in (0, 1), 2^53 of them equally likely."""
    words = np.frombuffer(os.urandom(8 * count), np.uint64)
    return ((words >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53


class PoissonSampler(Sampler[list[int]]):
    """Batches of indices: each of `size` is in each of the `batches` with the probability 1 / `batches`.

    `drawn` counts the batches that were handed out.
    """

    def __init__(self, size: int, batches: int) -> None:
        self._size = size
        self._batches = batches
        self.drawn = 0

    def __len__(self) -> int:
        return self._batches

    def __iter__(self) -> Iterator[list[int]]:
        for _ in range(self._batches):
            self.drawn += 1
            drawn: list[int] = np.flatnonzero(_uniform(self._size) < 1 / self._batches).tolist()
            yield drawn
