"""Counts, from an owner's ledger, what noisy releases have told of it, over all jobs of a task. Pure.

A round counts from the moment its update was about to leave, because nobody may ever say how the round ended. It is taken
back only where the aggregator says why this owner was not counted. A round that ended without a release stays, because
that it ended may be all that was told of a result: its values left the range of their type. What is told adds up as
zero-concentrated differential privacy (cairn/protocol/privacy.py), however the jobs are called.
"""

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from cairn.protocol.privacy import rho_of

_PRIVATE_MEAN = "private_mean"


class PrivacySpent:
    """Is told every entry of the ledger in order, by `note`."""

    def __init__(self) -> None:
        self._rho: defaultdict[str, dict[bytes, float]] = defaultdict(dict)  # of each task
        self._without_noise: defaultdict[str, set[bytes]] = defaultdict(set)

    def rho(self, task: str, besides: bytes = b"") -> float:
        """What was told by the rounds of the task, but for one manifest, in zCDP."""
        return sum(rho for digest, rho in self._rho[task].items() if digest != besides)

    def releases(self, task: str) -> int:
        """How many rounds of the task count."""
        return len(self._rho[task])

    def without_noise(self, task: str) -> int:
        """How many rounds of the task there were that no epsilon covers."""
        return len(self._without_noise[task])

    def note(self, kind: str, facts: Mapping[str, Any]) -> None:
        """Take in an entry. Raises KeyError or ValueError where a fact is missing or wrong."""
        match kind:
            case "sent":
                self._sent(bytes.fromhex(facts["manifest_digest"]), facts)
            case "released" | "no release" if not facts.get("counted") and "reason" in facts:
                self._take_back(facts)

    def _sent(self, digest: bytes, facts: Mapping[str, Any]) -> None:
        if facts.get("rule") == _PRIVATE_MEAN:
            self._rho[facts["task"]][digest] = rho_of(facts["rule_numbers"]["noise"])
        else:
            self._without_noise[facts["task"]].add(digest)

    def _take_back(self, facts: Mapping[str, Any]) -> None:
        digest = bytes.fromhex(facts["manifest_digest"])
        for rounds in self._rho.values():
            rounds.pop(digest, None)
        for others in self._without_noise.values():
            others.discard(digest)
