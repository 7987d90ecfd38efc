"""Decides which rounds the aggregator's memory can hold, and allocates it to them.

A round takes its rule's memory and a few buffers, for updates under way or held back, however many owners it has. All
of it is kept for the next round of the same kind: to take fresh memory from the system costs more than the sum.
Where values that lie far apart make its sums grow, a round takes more while it is open, of what is free.

How far sums grow depends on values, so no other round may notice: what sums have grown by counts as free when a
round is opened. Where both together are more than there is, the rounds whose sums have grown end for it.
"""

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

from aggregator_node.aggregation.buffers import BufferPool
from aggregator_node.aggregation.memory_shares import MemoryShares
from aggregator_node.aggregation.rule import Rule
from aggregator_node.aggregation.rules import RULES
from cairn.errors import LimitExceeded, Unavailable
from cairn.model.schema import Schema
from cairn.protocol.aggregation import Aggregation
from cairn.runtime.buffer import Buffer
from cairn.v1 import round_pb2 as pb

# Of buffers that a round may have in any case, so that small updates never wait.
_SMALL_BYTES = 64 << 20
# Where a container finds its limit, by cgroups of version 2 and of version 1.
_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
_MOST_KEPT = 4  # each has a few megabytes besides what is reckoned


@dataclass(eq=False)
class Workspace:
    """The memory of one round: its rule's, and buffers for the updates under way or held back."""

    rule: Rule
    buffers: BufferPool
    needs: object  # what it was made for
    nbytes: int
    coordinator: str = ""  # whose round has it
    grown: int = 0  # beyond `nbytes`, by sums that grow
    # Ends the round, for another that needs what it has grown by.
    end: Callable[[], object] = lambda: None


@dataclass(frozen=True)
class RoundSize:
    """What decides how much memory a round takes.

    `schema` is of what is combined by `aggregation` and above `floor`, `update_bytes` the size of an update on the
    wire, which are deltas or not, and `held` how many updates may have to wait for their weight.
    """

    schema: Schema
    update_bytes: int
    cohort: int
    held: int
    aggregation: Aggregation
    floor: int
    are_deltas: bool


class _Needs(NamedTuple):
    """What a round needs: its rule's, and buffers of one size for updates under way, and for kept ones."""

    schema: Schema
    aggregation: Aggregation
    floor: int
    size: int
    buffers: int
    to_keep: int

    def are_met_by(self, workspace: Workspace) -> bool:
        return self == workspace.needs

    @property
    def rule(self) -> type[Rule]:
        return RULES[self.aggregation.rule]


class MemoryBudget:
    """What is allocated and what is kept for reuse. Every method may be called from any thread."""

    def __init__(self, nbytes: int, updates_in_flight: int) -> None:
        """Allocate at most `nbytes`: to each round its rule, and buffers for so many updates, or more small ones."""
        self._nbytes = nbytes
        self._in_flight = updates_in_flight
        self._lock = threading.Lock()
        self._shares = MemoryShares(nbytes)
        self._kept: list[Workspace] = []
        self._grown: list[Workspace] = []

    def allocate(
        self, coordinator: str, round_size: RoundSize, now: float, base: Buffer | None = None
    ) -> Workspace:
        """The workspace of a new round of this coordinator; `now` is of a monotonic clock.

        The rule is given the values of the round's base, where it needs them.

        Raises LimitExceeded where this aggregator can never hold it, and Unavailable, which is to be tried
        again, while other rounds have the memory or another coordinator is to have its share of it first.
        """
        needs = self._needs_of(round_size)
        nbytes = (
            needs.rule.memory_bytes(needs.schema) + (needs.buffers + needs.to_keep) * needs.size
        )
        if nbytes > self._nbytes:
            raise LimitExceeded(
                f"a round of this model takes {_megabytes(nbytes)} of memory: the sums,"
                f" {needs.buffers} updates at a time and {needs.to_keep} held back for their weight; this"
                f" aggregator has {_megabytes(self._nbytes)}: raise memory_megabytes in its file, or"
                " lower updates_in_flight"
            )
        with self._lock:
            if not self._shares.may_take(coordinator, nbytes, now):
                raise Unavailable(
                    "the aggregator's memory is lent to other rounds, or another coordinator is to have its"
                    " share of it first: this round has to wait until one of them has ended",
                    pb.REASON_TOO_MUCH,
                )
            self._shares.take(coordinator, nbytes)
            kept = self._take_kept(needs)
            self._drop_kept()
            in_the_way = self._grown_in_the_way()
        for grown in in_the_way:
            grown.end()
        workspace = kept or self._fresh(coordinator, needs, nbytes)
        workspace.coordinator = coordinator
        workspace.buffers.begin()
        if round_size.aggregation.are_gradients:
            base = None  # a gradient is no distance from it
        grow = partial(self._grow, workspace)
        workspace.rule.begin(grow, base, are_deltas=round_size.are_deltas)
        return workspace

    def give_back(self, workspace: Workspace) -> None:
        """The round is over, and nothing is added any more: its memory, which is erased here, can be allocated again."""
        is_whole = workspace.buffers.end()
        workspace.rule.reset()
        with self._lock:
            self._shares.give_back(workspace.coordinator, workspace.nbytes)
            workspace.grown = 0
            if workspace in self._grown:
                self._grown.remove(workspace)
            if is_whole and workspace.nbytes:
                self._kept.append(workspace)
                del self._kept[:-_MOST_KEPT]

    def _needs_of(self, of: RoundSize) -> _Needs:
        size, cohort = of.update_bytes, of.cohort
        count = min(cohort, max(self._in_flight, _SMALL_BYTES // size)) if size else cohort
        held = of.held + RULES[of.aggregation.rule].held_updates(cohort)
        to_keep = min(held, cohort - count)
        return _Needs(of.schema, of.aggregation, of.floor, size, count, to_keep)

    def _fresh(self, coordinator: str, needs: _Needs, nbytes: int) -> Workspace:
        try:
            buffers = BufferPool(needs.buffers, needs.size, needs.to_keep)
            rule = needs.rule(needs.schema, needs.aggregation, needs.floor)
            return Workspace(rule, buffers, needs, nbytes)
        except (OSError, MemoryError) as error:  # the system has not what this node was told it has
            with self._lock:
                self._shares.give_back(coordinator, nbytes)
            raise Unavailable(
                f"the aggregator's machine has no memory for this round: {error}",
                pb.REASON_TOO_MUCH,
            ) from error

    @property
    def _free(self) -> int:
        """What no round has; less than nothing until those in the way have ended."""
        return self._shares.free - sum(workspace.grown for workspace in self._grown)

    def _grown_in_the_way(self) -> list[Workspace]:
        missing, in_the_way = -self._free, []
        for workspace in reversed(self._grown):
            if missing > 0:
                in_the_way.append(workspace)
                missing -= workspace.grown
        return in_the_way

    def _grow(self, workspace: Workspace, nbytes: int) -> None:
        """A round takes more; it cannot wait. Raises Unavailable where there is none."""
        with self._lock:
            if nbytes > self._free:
                raise Unavailable(
                    "the values of the updates lie so far apart that their exact sums need more memory than"
                    " there is: raise memory_megabytes in the aggregator's file, or lower its"
                    " largest_value",
                    pb.REASON_TOO_MUCH,
                )
            workspace.grown += nbytes
            if workspace not in self._grown:
                self._grown.append(workspace)
            self._drop_kept()

    def _take_kept(self, needs: _Needs) -> Workspace | None:
        for workspace in self._kept:
            if needs.are_met_by(workspace):
                self._kept.remove(workspace)
                return workspace
        return None

    def _drop_kept(self) -> None:
        while self._kept and sum(w.nbytes for w in self._kept) > self._free:
            del self._kept[0]


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
