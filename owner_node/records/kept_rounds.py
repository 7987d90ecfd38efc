"""Says, from an owner's ledger, which round's kept tensors a task goes on with. Pure.

    waiting    the round of which an update was sent last, until it is known how it ended
    current    the last one whose release counts this owner: the next round begins with what it kept

of each task and job. A round that ends otherwise leaves the current one as it is. Only the latest jobs of a task are
remembered, because a coordinator can name as many as it likes, and what is kept of each is on the owner's disk.
"""

from collections.abc import Mapping
from typing import Any

from cairn.protocol.words import PHASES
from cairn.v1 import round_pb2 as pb

MOST_JOBS = 16  # of a task: those in which it was counted last

_Rounds = dict[str, dict[str, bytes]]  # manifest digests, by task and job, the latest last


class KeptRounds:
    """Is told every entry of the ledger in order, by `note`."""

    def __init__(self) -> None:
        self._waiting: _Rounds = {}
        self._current: _Rounds = {}

    def current(self, task: str, job: str) -> bytes | None:
        """The manifest digest of the round whose kept tensors this job goes on with."""
        return self._current.get(task, {}).get(job)

    def of_task(self, task: str) -> set[bytes]:
        """Every round of the task whose kept tensors are, or may still be, gone on with."""
        return {*self._waiting.get(task, {}).values(), *self._current.get(task, {}).values()}

    def all(self) -> set[bytes]:
        return set().union(*map(self.of_task, self._waiting.keys() | self._current.keys()))

    def note(self, kind: str, facts: Mapping[str, Any]) -> None:
        """Take in an entry. Raises KeyError or ValueError where a fact is missing or wrong."""
        match kind:
            case "sent" if "columns" in facts:  # statistics, which keep nothing
                pass
            case "sent" if PHASES[facts["phase"]] == pb.PHASE_TRAIN:
                digest = bytes.fromhex(facts["manifest_digest"])
                _put(self._waiting, facts["task"], facts["job"], digest)
            case "released" | "no release":
                self._settle(bytes.fromhex(facts["manifest_digest"]), bool(facts.get("counted")))

    def _settle(self, digest: bytes, counted: bool) -> None:  # noqa: FBT001 - a fact of the ledger
        for task, jobs in self._waiting.items():
            for job in [job for job, waiting in jobs.items() if waiting == digest]:
                del jobs[job]
                if counted:
                    _put(self._current, task, job, digest)


def _put(rounds: _Rounds, task: str, job: str, digest: bytes) -> None:
    jobs = rounds.setdefault(task, {})
    jobs.pop(job, None)
    jobs[job] = digest
    for oldest in list(jobs)[:-MOST_JOBS]:
        del jobs[oldest]
