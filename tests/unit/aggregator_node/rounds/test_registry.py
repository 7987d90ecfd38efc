"""What is settled about a round before anybody learns that it has ended."""

from types import SimpleNamespace
from typing import Any

from aggregator_node import event_log
from aggregator_node.rounds.registry import RoundRegistry
from cairn.errors import Unavailable
from cairn.runtime.clock import Clock
from cairn.v1 import round_pb2 as pb


def _without_memory() -> None:
    raise Unavailable("the sums have no memory", pb.REASON_TOO_MUCH)


def test_a_round_without_memory_is_counted_before_its_coordinator_can_open_another() -> None:
    recorder: Any = SimpleNamespace(abort=lambda *_: None)
    memory: Any = SimpleNamespace(give_back=lambda _workspace: None)
    key: Any = None
    rounds = RoundRegistry(recorder, memory, key, Clock(), event_log.write)
    counted: list[int] = []
    session: Any = SimpleNamespace(
        digest=b"digest",
        coordinator="coordinator",
        await_seal=_without_memory,
        exclusions=(),
        release_memory=lambda: None,
        has_broken_uploads=False,
        end=lambda _reason: counted.append(rounds._exhausted["coordinator"]),
    )
    row: Any = SimpleNamespace(job="ward", number=1)
    anything: Any = None
    rounds._see_to_end(session, row, anything, anything)
    assert counted == [1]
