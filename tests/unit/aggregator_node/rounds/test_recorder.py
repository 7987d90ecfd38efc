"""How rounds begin and end on the disk: what is durable before it is told, and what a failure leaves."""

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from aggregator_node.events import (
    Event,
    MetricsLeftOut,
    RoundAborted,
    RoundOpened,
    RoundReleased,
)
from aggregator_node.rounds.bases import Bases
from aggregator_node.rounds.disclosure import ReleaseOverlap
from aggregator_node.rounds.recorder import RoundRecorder
from aggregator_node.rounds.results import SealedRound
from aggregator_node.rounds.upload import RoundContext
from aggregator_node.storage.rows import JobRow, RoundRow
from aggregator_node.storage.store import Store
from cairn.errors import LimitExceeded, Unavailable, UsageError, WrongState
from cairn.protocol.aggregation import Aggregation
from cairn.protocol.messages import job_spec_to_bytes
from cairn.protocol.statements import verified_statement
from cairn.runtime.clock import Clock
from cairn.v1 import aggregator_pb2
from cairn.v1 import round_pb2 as pb
from tests.unit.aggregator_node.rounds.test_upload import CONTEXT, JOB, SCHEMA

KEY = Ed25519PrivateKey.generate()
VALUES = struct.pack("<3f", 1.0, 2.0, 3.0)
OPEN = aggregator_pb2.ROUND_STATE_OPEN
RELEASED = aggregator_pb2.ROUND_STATE_RELEASED
ABORTED = aggregator_pb2.ROUND_STATE_ABORTED


class Rule:
    """A rule whose result is given; where it is an error, it comes after the first bytes."""

    def __init__(self, result: bytes | Exception = VALUES) -> None:
        self._result = result

    def result_blocks(self) -> Iterator[memoryview]:
        if isinstance(self._result, Exception):
            yield memoryview(VALUES[:4])
            raise self._result
        yield memoryview(self._result)


def round_of(number: int = 1, phase: "pb.Phase" = pb.PHASE_TRAIN, **changes: Any) -> RoundContext:
    changes = {"deadline_unix_ms": 1_700_000_000_000, **changes}
    return replace(
        CONTEXT, manifest=replace(CONTEXT.manifest, round=number, phase=phase, **changes)
    )


def row_of(context: RoundContext) -> RoundRow:
    signed = pb.Signed(body=context.body).SerializeToString()
    return RoundRow(context.digest, *context.ids, context.manifest.phase, signed)


def sealed(
    rule: Rule | None = None, owners: tuple[str, ...] = ("alice", "bob"), **metrics: float
) -> SealedRound:
    made: Any = rule or Rule()
    commitments = tuple(sorted(owner.encode().ljust(32) for owner in owners))
    return SealedRound(made, owners, commitments, metrics, ())


@dataclass
class Bench:
    """A recorder on a store, and what it tells."""

    store: Store
    told: list[Event]
    check: Callable[[Event], None] = lambda _event: None

    def start(self) -> RoundRecorder:
        overlap = ReleaseOverlap(any_base=False)
        return RoundRecorder(self.store, KEY, Clock(), overlap, Bases(self.store), self._tell)

    def _tell(self, event: Event) -> None:
        self.told.append(event)
        self.check(event)

    def state(self, context: RoundContext) -> tuple[int, int]:
        row = self.store.round(context.digest)
        return row.state, row.reason

    def entries(self) -> list[str]:
        return [entry.kind for entry in self.store.entries(1, 100)]

    def files(self) -> set[Path]:
        return set((self.store.path / "releases").iterdir())

    def opened(self, recorder: RoundRecorder, context: RoundContext) -> RoundRow:
        row = row_of(context)
        recorder.open(row, context.manifest)
        return row


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    store = Store(tmp_path / "state", Clock())
    with store.transaction():
        store.add_job(JobRow("tumours", "coordinator", job_spec_to_bytes(JOB)))
    yield Bench(store, [])
    store.close()


def test_an_opening_and_a_release_are_on_the_disk_before_they_are_told(bench: Bench) -> None:
    context, seen = round_of(), []

    def look(event: Event) -> None:
        files = len(bench.files())
        seen.append((type(event), *bench.state(context), bench.entries(), files))

    bench.check = look
    recorder = bench.start()
    recorder.release(bench.opened(recorder, context), context, sealed())
    assert seen == [
        (RoundOpened, OPEN, 0, ["open"], 0),
        (RoundReleased, RELEASED, 0, ["open", "release"], 1),
    ]


def test_a_release_is_the_file_whose_digest_its_signed_statement_names(bench: Bench) -> None:
    recorder, context = bench.start(), round_of()
    recorder.release(bench.opened(recorder, context), context, sealed(loss=0.5))
    row = bench.store.round(context.digest)
    statement = verified_statement(KEY.public_key(), pb.Signed.FromString(row.statement or b""))
    assert statement.release_digest == row.release_digest == SCHEMA.digest(VALUES)
    assert (statement.contributors, dict(statement.metrics)) == (2, {"loss": 0.5})
    assert bench.store.release_path(context.digest).read_bytes().endswith(VALUES)


@pytest.mark.parametrize("phase", [pb.PHASE_TRAIN, pb.PHASE_EVALUATE])
def test_a_release_that_fails_leaves_no_file_and_counts_for_nothing(
    bench: Bench, phase: "pb.Phase", monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of an evaluation there is no file to delete, and that hides the error from nobody."""
    recorder, context = bench.start(), round_of(phase=phase)
    row = bench.opened(recorder, context)
    with monkeypatch.context() as full:
        full.setattr(bench.store, "append", _full)
        with pytest.raises(Unavailable):
            recorder.release(row, context, sealed())
    assert (bench.state(context), bench.files()) == ((OPEN, 0), set())
    other = round_of(2, phase, cohort=("alice", "bob", "carol"))
    recorder.check(other)  # three owners may be released, as the two were not


def _full(_kind: str, _facts: object) -> None:
    raise OSError(28, "No space left on device")


def test_an_average_that_is_not_finite_leaves_the_round_open_and_no_file(bench: Bench) -> None:
    recorder, context = bench.start(), round_of()
    row = bench.opened(recorder, context)
    with pytest.raises(LimitExceeded):
        recorder.release(row, context, sealed(Rule(LimitExceeded("beyond the range"))))
    assert (bench.state(context), bench.files()) == ((OPEN, 0), set())


def test_a_release_that_overlaps_with_an_earlier_one_is_refused_and_nothing_is_kept(
    bench: Bench,
) -> None:
    recorder, first, second = bench.start(), round_of(1), round_of(2)
    recorder.release(bench.opened(recorder, first), first, sealed())
    row = bench.opened(recorder, second)
    with pytest.raises(WrongState, match="tell of single owners"):
        recorder.release(row, second, sealed(owners=("alice", "carol")))
    assert bench.state(second) == (OPEN, 0)
    assert bench.files() == {bench.store.release_path(first.digest)}


def test_a_training_leaves_without_metrics_that_overlap_and_says_so(bench: Bench) -> None:
    recorder, evaluation, training = bench.start(), round_of(1, pb.PHASE_EVALUATE), round_of(2)
    recorder.release(bench.opened(recorder, evaluation), evaluation, sealed(loss=0.5))
    row = bench.opened(recorder, training)
    recorder.release(row, training, sealed(owners=("alice", "carol"), loss=0.7))
    assert MetricsLeftOut("tumours", 2) in bench.told
    signed = pb.Signed.FromString(bench.store.round(training.digest).statement or b"")
    assert not pb.ReleaseStatement.FromString(signed.body).metrics


def test_a_release_replaces_the_one_before_which_may_be_gone_already(bench: Bench) -> None:
    recorder, rounds = bench.start(), [round_of(number) for number in (1, 2, 3)]
    for context in rounds:
        recorder.release(bench.opened(recorder, context), context, sealed())
        assert bench.files() == {bench.store.release_path(context.digest)}
        if context is rounds[1]:
            bench.store.release_path(context.digest).unlink()
    assert bench.state(rounds[2]) == (RELEASED, 0)


def test_an_end_is_recorded_once(bench: Bench) -> None:
    recorder, context = bench.start(), round_of()
    row = bench.opened(recorder, context)
    recorder.abort(row, pb.REASON_BELOW_FLOOR, ())
    with pytest.raises(WrongState, match="recorded already"):
        recorder.abort(row, pb.REASON_ABORTED, ())
    with pytest.raises(WrongState, match="recorded already"):
        recorder.release(row, context, sealed())
    assert (bench.state(context), bench.files()) == ((ABORTED, pb.REASON_BELOW_FLOOR), set())
    assert bench.entries() == ["open", "abort"]
    assert recorder.end_of(row) == pb.REASON_BELOW_FLOOR


def test_a_round_that_was_open_when_the_process_ended_is_aborted_by_the_next(bench: Bench) -> None:
    context = round_of()
    bench.opened(bench.start(), context)
    bench.start()
    assert bench.state(context) == (ABORTED, pb.REASON_AGGREGATOR_RESTARTED)
    assert bench.told[-1] == RoundAborted("tumours", 1, pb.REASON_AGGREGATOR_RESTARTED)


def test_a_release_of_an_earlier_process_is_compared_with_those_of_the_next(bench: Bench) -> None:
    recorder, context = bench.start(), round_of()
    recorder.release(bench.opened(recorder, context), context, sealed())
    with pytest.raises(WrongState):
        bench.start().check(round_of(2, cohort=("alice", "bob", "carol")))


def test_releases_of_another_version_are_not_taken_up(bench: Bench) -> None:
    recorder, context = bench.start(), round_of(deadline_unix_ms=0)
    recorder.release(bench.opened(recorder, context), context, sealed())
    with pytest.raises(UsageError, match="another version of Cairn, such as round 1 of tumours"):
        bench.start()


def test_no_rule_releases_an_average_of_fewer_owners_than_the_floor(bench: Bench) -> None:
    krum = Aggregation(rule=pb.RULE_MULTI_KRUM, rule_numbers={"byzantine": 0, "select": 2})
    recorder, context = bench.start(), round_of()
    context = replace(context, job=replace(context.job, aggregation=krum))
    row = bench.opened(recorder, context)
    with pytest.raises(AssertionError, match="floor"):
        recorder.release(row, context, sealed())  # of two, it has no result


def test_the_base_of_deltas_is_the_release_on_the_aggregators_own_disk(bench: Bench) -> None:
    recorder, first = bench.start(), round_of()
    recorder.release(bench.opened(recorder, first), first, sealed())
    base = bench.store.round(first.digest).release_digest
    second = round_of(2, base_digest=base, encoding=pb.ENCODING_BF16_DELTAS)
    values = recorder.base_of(second)
    assert values is not None
    assert bytes(values) == VALUES


def test_a_release_that_was_changed_on_the_disk_is_deleted_and_is_no_base(bench: Bench) -> None:
    recorder, first = bench.start(), round_of()
    recorder.release(bench.opened(recorder, first), first, sealed())
    path = bench.store.release_path(first.digest)
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    base = bench.store.round(first.digest).release_digest
    second = round_of(2, base_digest=base, encoding=pb.ENCODING_BF16_DELTAS)
    with pytest.raises(WrongState, match="has not the model"):
        recorder.base_of(second)
    assert bench.files() == set()
