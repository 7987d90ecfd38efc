"""Decides which rounds the aggregator's memory can hold, and lends it to them.

A round takes the sums and a few buffers for updates under way, however many owners it has. All of it is
kept for the next round of the same kind: to take fresh memory from the system costs more than the sum.
"""

import os
import threading
from dataclasses import dataclass
from pathlib import Path

from aggregator_node.averaging import Mean, sum_bytes
from aggregator_node.buffers import Buffers
from aggregator_node.push import Terms
from cairn.errors import TooMuch, Unavailable
from cairn.tensors import Schema
from cairn.v1 import round_pb2 as pb

# Of buffers that a round may have in any case, so that small updates never wait.
_SMALL_BYTES = 64 << 20
# Where a container finds its limit, by cgroups of version 2 and of version 1.
_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
_MOST_KEPT = 4  # each has a few megabytes besides what is reckoned


@dataclass
class Workspace:
    """The memory of one round: the sums, and buffers for the updates under way."""

    mean: Mean
    buffers: Buffers
    schema: Schema
    nbytes: int


class Memory:
    """What is lent and what is kept. Every method may be called from any thread."""

    def __init__(self, nbytes: int, updates_in_flight: int) -> None:
        """Lend at most `nbytes`, and to each round buffers for so many updates, or more small ones."""
        self._nbytes = nbytes
        self._in_flight = updates_in_flight
        self._lock = threading.Lock()
        self._lent = 0
        self._kept: list[Workspace] = []

    def lend(self, terms: Terms) -> Workspace:
        """The workspace of a new round.

        Raises TooMuch where this aggregator can never hold it, and Unavailable, which is to be tried
        again, while other rounds have the memory.
        """
        # In an evaluation nothing is added: its sums are those of no tensor.
        schema = terms.job.schema if terms.manifest.trains else Schema(())
        size = terms.total_bytes
        count = self._buffers_of(size, len(terms.manifest.cohort))
        nbytes = count * size + sum_bytes(schema)
        if nbytes > self._nbytes:
            raise TooMuch(
                f"a round of this model takes {_megabytes(nbytes)} of memory: the sums and"
                f" {count} updates at a time; this aggregator has {_megabytes(self._nbytes)}:"
                " raise memory_megabytes in its file, or lower updates_in_flight"
            )
        with self._lock:
            if self._lent + nbytes > self._nbytes:
                raise Unavailable(
                    "the aggregator's memory is lent to other rounds: this one has to wait until one"
                    " of them has ended",
                    pb.REASON_TOO_MUCH,
                )
            self._lent += nbytes
            kept = self._take_kept(schema, size, count)
            while self._kept and self._lent + sum(w.nbytes for w in self._kept) > self._nbytes:
                del self._kept[0]
        if kept is not None:
            kept.buffers.begin()
            return kept
        try:
            return Workspace(Mean(schema), Buffers(count, size), schema, nbytes)
        except (OSError, MemoryError) as error:  # the system has not what this node was told it has
            with self._lock:
                self._lent -= nbytes
            raise Unavailable(
                f"the aggregator's machine has no memory for this round: {error}",
                pb.REASON_TOO_MUCH,
            ) from error

    def take_back(self, workspace: Workspace) -> None:
        """The round is over, and nothing is added any more: its memory, which is erased here, can be lent again."""
        is_whole = workspace.buffers.end()
        workspace.mean.reset()
        with self._lock:
            self._lent -= workspace.nbytes
            if is_whole and workspace.nbytes:
                self._kept.append(workspace)
                del self._kept[:-_MOST_KEPT]

    def _buffers_of(self, size: int, cohort: int) -> int:
        return min(cohort, max(self._in_flight, _SMALL_BYTES // size)) if size else cohort

    def _take_kept(self, schema: Schema, size: int, count: int) -> Workspace | None:
        for workspace in self._kept:
            buffers = workspace.buffers
            if (buffers.nbytes, buffers.count) == (size, count) and workspace.schema == schema:
                self._kept.remove(workspace)
                return workspace
        return None


def memory_of_this_machine() -> int:
    """The bytes that this process may have: the machine's, or its container's where that has fewer."""
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min([physical, *(limit for file in _LIMITS if (limit := _read(file)) is not None)])


def _read(limit: str) -> int | None:
    try:
        return int(Path(limit).read_text(encoding="ascii"))
    except (OSError, ValueError):  # there is none, or it says "max"
        return None


def _megabytes(nbytes: int) -> str:
    return f"{-(-nbytes // 1_000_000)} MB"
