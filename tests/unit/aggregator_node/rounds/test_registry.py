"""How a round is started and seen to its end: what is undone on a failure, and what is settled before anybody learns."""

import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from aggregator_node.admission import MAX_EXHAUSTED_ROUNDS
from aggregator_node.events import Event, RecordFailed, ReleaseFailed
from aggregator_node.rounds.registry import RoundRegistry
from cairn.errors import LimitExceeded, Unavailable, WrongState
from cairn.runtime.clock import Clock
from cairn.v1 import aggregator_pb2
from cairn.v1 import round_pb2 as pb
from tests.unit.aggregator_node.rounds.test_upload import CONTEXT

KEY = Ed25519PrivateKey.generate()
ROW: Any = SimpleNamespace(job="ward", number=1)
BUG = RuntimeError("nobody expects this")


def fails(error: BaseException) -> Callable[..., Any]:
    def fail(*_: object) -> None:
        raise error

    return fail


class Bench:
    """A registry whose recorder and memory note what is asked of them; no round of it runs by itself."""

    def __init__(self) -> None:
        self.did: list[str] = []
        self.told: list[Event] = []
        self.counted: list[int] = []
        self.recorder: Any = SimpleNamespace(
            check=lambda _context: None,
            base_of=lambda _context: None,
            open=lambda _row, _cohort: self.did.append("open"),
            release=lambda *_: self.did.append("release"),
            abort=self._abort,
            end_of=lambda _row: pb.REASON_COHORT_DIFFERENCE,
        )
        self.memory: Any = SimpleNamespace(
            allocate=lambda *_: SimpleNamespace(coordinator="coordinator", end=None),
            give_back=lambda _workspace: self.did.append("give back"),
        )
        recorder: Any = self.recorder
        memory: Any = self.memory
        self.rounds = RoundRegistry(recorder, memory, KEY, Clock(), self.told.append)

    def _abort(self, _row: object, reason: "pb.Reason", _exclusions: object) -> None:
        self.did.append(f"abort {pb.Reason.Name(reason)}")

    def _end(self, reason: "pb.Reason") -> None:
        self.did.append(f"end {pb.Reason.Name(reason)}")
        self.counted.append(self.rounds._exhausted["coordinator"])

    def start(self) -> None:
        with mock.patch.object(threading.Thread, "start"):
            self.rounds.start("coordinator", CONTEXT)

    def see_to_end(self, **session: Any) -> list[str]:
        """Have a round seen to its end whose session does as is said; returns what was done."""
        live: Any = SimpleNamespace(
            digest=b"digest",
            coordinator="coordinator",
            exclusions=(),
            has_broken_uploads=False,
            reason=pb.REASON_UNSPECIFIED,
            release_memory=lambda: self.did.append("release memory"),
            end=self._end,
        )
        live.__dict__.update(session)
        anything: Any = None
        self.rounds._see_to_end(live, ROW, anything, anything)
        return self.did


def test_the_memory_is_back_before_anybody_learns_of_a_release() -> None:
    assert Bench().see_to_end(await_seal=lambda: "sealed") == [
        *("release", "release memory", "give back", "end REASON_UNSPECIFIED"),
    ]


def test_an_aborted_round_is_recorded_and_told_with_its_reason() -> None:
    assert Bench().see_to_end(await_seal=lambda: None, reason=pb.REASON_BELOW_FLOOR) == [
        *("abort REASON_BELOW_FLOOR", "release memory", "give back", "end REASON_BELOW_FLOOR"),
    ]


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (LimitExceeded("infinite", pb.REASON_ABORTED), pb.REASON_NON_FINITE),
        (WrongState("overlaps", pb.REASON_COHORT_DIFFERENCE), pb.REASON_COHORT_DIFFERENCE),
        (Unavailable("no memory", pb.REASON_TOO_MUCH), pb.REASON_TOO_MUCH),
        (Unavailable("away"), pb.REASON_STORAGE_FAILED),
        (OSError(28, "No space left on device"), pb.REASON_STORAGE_FAILED),
        (BUG, pb.REASON_STORAGE_FAILED),
    ],
    ids=str,
)
def test_a_round_that_cannot_be_released_is_aborted_for_a_reason_that_fits(
    error: Exception, reason: "pb.Reason"
) -> None:
    bench = Bench()
    bench.recorder.release = fails(error)
    word = pb.Reason.Name(reason)
    assert bench.see_to_end(await_seal=lambda: "sealed") == [
        *(f"abort {word}", "release memory", "give back", f"end {word}"),
    ]
    assert bench.told == [ReleaseFailed("ward", 1, error)]


def test_an_unexpected_failure_leaves_the_reason_that_the_round_had() -> None:
    bench = Bench()
    done = bench.see_to_end(await_seal=fails(BUG), reason=pb.REASON_BELOW_FLOOR)
    assert (done[0], done[-1]) == ("abort REASON_BELOW_FLOOR", "end REASON_BELOW_FLOOR")


def test_what_was_recorded_before_a_failure_is_what_is_told() -> None:
    bench = Bench()
    bench.recorder.release = fails(BUG)
    bench.recorder.abort = fails(WrongState("the round's end is recorded already"))
    done = bench.see_to_end(await_seal=lambda: "sealed")
    assert done[-1] == "end REASON_COHORT_DIFFERENCE"
    assert bench.told == [ReleaseFailed("ward", 1, BUG)]


@pytest.mark.parametrize("error", [Unavailable("the disk is full"), BUG])
def test_an_end_that_cannot_be_recorded_is_told_all_the_same(error: Exception) -> None:
    bench = Bench()
    bench.recorder.release = bench.recorder.abort = fails(error)
    done = bench.see_to_end(await_seal=lambda: "sealed")
    assert done == ["release memory", "give back", "end REASON_STORAGE_FAILED"]
    assert bench.told == [ReleaseFailed("ward", 1, error), RecordFailed("ward", 1, error)]


def test_a_round_ends_for_its_watchers_though_its_memory_cannot_be_given_back() -> None:
    bench = Bench()
    bench.memory.give_back = fails(BUG)
    with pytest.raises(RuntimeError):
        bench.see_to_end(await_seal=lambda: "sealed")
    assert bench.did[-1] == "end REASON_UNSPECIFIED"


def test_a_round_without_memory_is_counted_before_its_coordinator_can_open_another() -> None:
    bench = Bench()
    no_memory = fails(Unavailable("the sums have no memory", pb.REASON_TOO_MUCH))
    for _ in range(MAX_EXHAUSTED_ROUNDS):
        bench.start()
        bench.see_to_end(await_seal=no_memory)
    assert bench.counted == [*range(1, MAX_EXHAUSTED_ROUNDS + 1)]
    with pytest.raises(WrongState, match="no memory left") as refused:
        bench.start()
    assert refused.value.reason == pb.REASON_TOO_MUCH
    assert bench.rounds.under_way("another") == []


def test_a_round_whose_opening_cannot_be_recorded_is_none_and_gives_its_memory_back() -> None:
    bench = Bench()
    bench.recorder.open = fails(Unavailable("the disk is full"))
    with pytest.raises(Unavailable):
        bench.start()
    assert bench.did == ["give back"]
    assert bench.rounds.find(CONTEXT.digest) is None


def test_a_round_that_nobody_can_see_to_its_end_is_aborted_at_once() -> None:
    bench = Bench()
    with (
        mock.patch.object(threading.Thread, "start", side_effect=RuntimeError("no more threads")),
        pytest.raises(RuntimeError),
    ):
        bench.rounds.start("coordinator", CONTEXT)
    assert bench.did == ["open", "abort REASON_STORAGE_FAILED", "give back"]
    assert bench.rounds.find(CONTEXT.digest) is None


def test_a_release_that_could_not_stand_beside_another_takes_no_memory() -> None:
    bench = Bench()
    bench.recorder.check = fails(WrongState("overlaps"))
    bench.memory.allocate = fails(AssertionError("nothing is allocated"))
    with pytest.raises(WrongState, match="overlaps"):
        bench.start()
    assert bench.did == []


def test_a_coordinator_has_its_own_rounds_under_way() -> None:
    bench = Bench()
    bench.start()
    session = bench.rounds.find(CONTEXT.digest)
    assert session is not None
    assert bench.rounds.under_way("coordinator") == bench.rounds.under_way() == [session]
    assert bench.rounds.under_way("another") == []
    session.state = aggregator_pb2.ROUND_STATE_SEALED
    assert bench.rounds.under_way() == [session]
    session.end(pb.REASON_ABORTED)
    assert bench.rounds.under_way() == []


def test_only_rounds_that_nobody_sees_to_their_end_are_recorded_as_left_over() -> None:
    bench = Bench()
    bench.start()
    here: Any = SimpleNamespace(manifest_digest=CONTEXT.digest)
    left: Any = SimpleNamespace(manifest_digest=b"left")
    bench.rounds.record_left_over_ends([here, left])
    assert bench.did == ["open", "abort REASON_STORAGE_FAILED"]
    bench.recorder.abort = fails(WrongState("ended between the two looks"))
    bench.rounds.record_left_over_ends([left])
