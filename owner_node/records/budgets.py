"""Counts, from an owner's ledger, how often a task took part and failed, and what can be learnt from it. Pure.

    taken      a round that this owner joined: it is recorded before the base is fetched, so it counts
               whatever became of it, and a repeated invitation counts once
    a failure  a round that it joined and in which it was not counted for a cause that may depend on its
               data: one of `cairn.protocol.reasons.DEPENDING_ON_DATA`, or work on the data that the round's deadline
               cut off

No failure is a round that others ended, a base that did not come or was refused, or the end of the whole node,
which sees of values no more than their bytes.

    counted    an update of statistics left that counts the column, unless its round is known to have ended without a
               release, or its release says why it does not count this owner
"""

import math
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from cairn.protocol.reasons import DEPENDING_ON_DATA
from cairn.protocol.words import PHASES, reason_of_word
from cairn.v1 import round_pb2 as pb

_WORDS = 2  # by which others are shown a failure: NOT_COUNTED or DEADLINE
_PHASES = 2

Stream = tuple[str, "pb.Phase"]  # a task and a phase


def bits_told(max_rounds: int, max_failures: int, metrics: int) -> float:
    """The most that a coordinator can learn of one owner by its failures, in bits, for a task between resets.

    All that it is shown, beside averages and times: which of the rounds were failures, and by which word. There
    are at most (1 + words * rounds) ** failures such stories. Which of its `metrics` a task reports at first
    is at most one bit more for each of them and each phase; after that a change is a failure.
    """
    return max_failures * math.log2(1 + _WORDS * _PHASES * max_rounds) + _PHASES * metrics


class Budgets:
    """Is told every entry of the ledger in order, by `note`."""

    def __init__(self) -> None:
        self._task_of: dict[bytes, str] = {}  # of every round that was joined
        self._taken: defaultdict[Stream, set[bytes]] = defaultdict(set)
        self._failed: defaultdict[str, set[bytes]] = defaultdict(set)
        self._innocent: set[bytes] = set()
        self._forgiven: set[bytes] = set()
        self._reported: dict[Stream, frozenset[str]] = {}
        # of every update of statistics: its task and its columns
        self._counted: dict[bytes, tuple[str, frozenset[str]]] = {}

    def taken(self, task: str, phase: "pb.Phase", besides: bytes = b"") -> int:
        """In how many rounds of the phase it took part, but for one manifest."""
        return len(self._taken[task, phase] - {besides})

    def failures(self, task: str) -> int:
        """How many rounds failed since the task was last reset."""
        return len(self._failed[task])

    def reported(self, task: str, phase: "pb.Phase") -> frozenset[str] | None:
        """The metrics that the task reported first since it was last reset; None before."""
        return self._reported.get((task, phase))

    def counted(self, task: str, column: str, besides: bytes = b"") -> int:
        """In how many statistics this column of the task has left, but for one manifest."""
        return sum(
            digest != besides and of == task and column in columns
            for digest, (of, columns) in self._counted.items()
        )

    def note(self, kind: str, facts: Mapping[str, Any]) -> None:
        """Take in an entry. Raises KeyError or ValueError where a fact is missing or wrong."""
        match kind:
            case "joined":
                digest = bytes.fromhex(facts["manifest_digest"])
                self._task_of[digest] = facts["task"]
                self._taken[facts["task"], PHASES[facts["phase"]]].add(digest)
            case "sent" if "columns" in facts:
                digest = bytes.fromhex(facts["manifest_digest"])
                self._counted[digest] = facts["task"], frozenset(facts["columns"])
            case "sent":
                names = frozenset({*facts["metrics"], *facts.get("dropped_metrics", ())})
                self._reported.setdefault((facts["task"], PHASES[facts["phase"]]), names)
            case "declined" | "not accepted" | "released" | "no release":
                if not facts.get("counted"):
                    self._note_end(kind, facts)
            case "reset":
                self._reset(facts["task"])

    def _note_end(self, kind: str, facts: Mapping[str, Any]) -> None:
        """How a round ended for this owner, as itself has it, or as a statement does."""
        digest = bytes.fromhex(facts["manifest_digest"])
        # Without a reason only the receipt was lost, or is left out: the release may count the update all the same.
        if kind == "no release" or (kind == "released" and "reason" in facts):
            self._counted.pop(digest, None)
        if digest not in self._task_of or digest in self._forgiven:
            return
        reason = reason_of_word(facts.get("reason", ""))
        cut_off = reason == pb.REASON_DEADLINE and digest not in self._innocent
        if reason in DEPENDING_ON_DATA or cut_off:
            self._failed[self._task_of[digest]].add(digest)
        elif kind == "declined":
            self._innocent.add(digest)

    def _reset(self, task: str) -> None:
        self._forgiven |= self._failed.pop(task, set())
        for phase in PHASES.values():
            self._reported.pop((task, phase), None)
