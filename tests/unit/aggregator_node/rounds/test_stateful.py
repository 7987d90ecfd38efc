"""Random sequences of everything that a coordinator, owners and a power cut can do to the aggregator.

Policy, rounds, store and ledger run as in the process, without gRPC, on a clock that the test sets; the
thread that sees a round to its end is run whenever it would have something to do.
"""

import json
import shutil
import struct
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from fractions import Fraction
from hashlib import sha256
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from aggregator_node import event_log
from aggregator_node.admission import AdmissionPolicy, Opening
from aggregator_node.aggregation.workspace import MemoryBudget
from aggregator_node.rounds import registry
from aggregator_node.rounds.bases import Bases
from aggregator_node.rounds.disclosure import ReleaseOverlap
from aggregator_node.rounds.jobs import JobRegistry
from aggregator_node.rounds.recorder import RoundRecorder
from aggregator_node.rounds.registry import RoundRegistry
from aggregator_node.storage.rows import RoundRow
from aggregator_node.storage.store import Store
from cairn.errors import CairnError
from cairn.model.safetensors_reader import read_model
from cairn.model.schema import Schema, TensorSpec
from cairn.protocol.messages import (
    JobSpec,
    Manifest,
    digest_of,
    job_spec_to_bytes,
    manifest_from_bytes,
)
from cairn.runtime.clock import Clock
from cairn.v1 import aggregator_pb2
from cairn.v1 import round_pb2 as pb
from tests.unit.aggregator_node.rounds.calls import FakeCall

OWNERS = ("alice", "bob", "carol", "dora", "erin")
JOBS = ("one", "two", "three")
SCHEMA = Schema.of([TensorSpec("who", "F64", (len(OWNERS),))])
BASES = [SCHEMA.digest(bytes([first]) * SCHEMA.total_bytes) for first in (0, 1)]
LEASE, DEADLINE = 15, 60
MEMORY = 1 << 20  # more than all rounds together take
TRAIN, EVALUATE = pb.PHASE_TRAIN, pb.PHASE_EVALUATE
RELEASED = aggregator_pb2.ROUND_STATE_RELEASED
ABORTED = aggregator_pb2.ROUND_STATE_ABORTED


class SetClock(Clock):
    """A clock that stands where the test puts it."""

    now = 1_700_000_000.0

    def monotonic(self) -> float:
        return self.now

    def unix_ms(self) -> int:
        return int(self.now * 1000)


def spec_of(name: str, floor: int, weighting: "pb.Weighting") -> JobSpec:
    return JobSpec(
        federation="clinics",
        name=name,
        task="task",
        settings={},
        owners=OWNERS,
        floor=floor,
        rounds=3,
        weighting=weighting,
        schema=SCHEMA,
        round_deadline_seconds=DEADLINE,
        min_examples=1,
        max_examples=9,
    )


@dataclass
class Pushed:
    """An update that was accepted: what the oracle knows of it."""

    value: float  # at the owner's own place; 0 everywhere else
    examples: int
    receipt: pb.Signed


@dataclass
class Opened:
    """A manifest that was signed, and who was accepted under it."""

    digest: bytes
    manifest: Manifest
    accepted: dict[str, Pushed] = field(default_factory=dict)


class Aggregator:
    """The aggregator without its network, and what a test knows of it from outside."""

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp())
        self.key = Ed25519PrivateKey.generate()
        self.clock = SetClock()
        self.rounds: list[Opened] = []
        self.specs: dict[str, JobSpec] = {}
        self.due: list[tuple[Callable[..., None], tuple[Any, ...]]] = []
        later = self._later
        self._threads = mock.patch.object(
            registry, "threading", SimpleNamespace(Lock=threading.Lock, Thread=later)
        )
        self._threads.start()
        self.start()

    def start(self) -> None:
        self.store = Store(self.path / "state", self.clock)
        policy = AdmissionPolicy("clinics", frozenset(OWNERS), floor=2, lease_seconds=LEASE)
        overlap = ReleaseOverlap(any_base=False)
        bases = Bases(self.store)
        recorder = RoundRecorder(self.store, self.key, self.clock, overlap, bases, event_log.write)
        rounds = RoundRegistry(
            recorder, MemoryBudget(MEMORY, 2), self.key, self.clock, event_log.write
        )
        self.jobs = JobRegistry(lambda: policy, self.store, rounds, self.clock, event_log.write)

    def crash(self) -> None:
        """Everything that is only in memory is gone."""
        self.due.clear()
        self.store.close()
        self.start()

    def end(self) -> None:
        self._threads.stop()
        self.store.close()
        shutil.rmtree(self.path)

    def settle(self) -> None:
        """Run what sees a round to its end, where there is something to do."""
        for target, arguments in list(self.due):
            session = arguments[0]
            if session._ending() is not None:
                self.due.remove((target, arguments))
                target(*arguments)

    def register(self, spec: JobSpec) -> None:
        self.jobs.register("coordinator", job_spec_to_bytes(spec), bytes(32))
        self.specs[spec.name] = spec

    def open(self, job: str, opening: Opening) -> Opened:
        signed = self.jobs.open("coordinator", 1, job, opening)
        digest = digest_of(signed.body)
        known = [opened for opened in self.rounds if opened.digest == digest]
        if not known:
            self.rounds.append(Opened(digest, manifest_from_bytes(signed.body)))
        return known[0] if known else self.rounds[-1]

    def next_opening(self, job: str, cohort: tuple[str, ...], base: bytes) -> Opening:
        """What a good coordinator asks for next."""
        progress = self.store.progress(job)
        return Opening(progress.opened + 1, TRAIN, cohort, progress.release_digest or base)

    def push(self, opened: Opened, owner: str, how: str = "good", examples: int = 1) -> None:
        """Push an update that is good, or bad in one way."""
        session = self.jobs.session(opened.digest)
        trains = opened.manifest.trains
        value = {"nan": float("nan"), "huge": 1e10, "other": 3.0}.get(how, 1.0)
        place = OWNERS.index(owner)
        values = [value if index == place else 0.0 for index in range(len(OWNERS))]
        payload = struct.pack(f"<{len(OWNERS)}d", *values) if trains else b""
        header = aggregator_pb2.UpdateHeader(
            manifest_digest=opened.digest,
            base_digest=bytes(32) if how == "other base" else opened.manifest.base_digest,
            examples=examples,
            metrics={
                name: float(name == owner) * (1.0 if how == "good" else value) for name in OWNERS
            },
            total_bytes=len(payload),
            salt=sha256(owner.encode()).digest(),
        )
        digest = SCHEMA.digest(payload) if trains else b""
        with session.upload(owner, header, FakeCall()) as upload:
            if trains and how != "cut off":
                upload.write(memoryview(payload))
                session.heard(owner, upload)
            commit = aggregator_pb2.UpdateCommit(payload_digest=digest)
            receipt = session.commit(owner, upload, commit)
        accepted = opened.accepted.setdefault(owner, Pushed(value, examples, receipt))
        assert accepted == Pushed(value, examples, receipt), "another update for the same receipt"

    def ends(self) -> list[RoundRow]:
        rows = self.store._db.execute("SELECT * FROM round").fetchall()
        return [RoundRow.of(row) for row in rows]

    def _later(self, target: Callable[..., None], args: tuple[Any, ...], **_names: Any) -> Any:
        return SimpleNamespace(start=lambda: self.due.append((target, args)))


def highest_cap(weights: list[int]) -> int:
    """With which nobody has half of the weight; without any such, all count the same."""
    caps = range(1, max(weights) + 1)
    counted = {cap: [min(weight, cap) for weight in weights] for cap in caps}
    return max((c for c, w in counted.items() if 2 * max(w) < sum(w)), default=min(weights))


class Check:
    """What must hold after every step, whatever happened."""

    def __init__(self, aggregator: Aggregator) -> None:
        self.aggregator = aggregator
        self._heads: list[bytes] = []
        self._ended: dict[tuple[str, int, int], RoundRow] = {}
        self.trained = 0  # how many models were released

    def all(self) -> None:
        rows = {row.manifest_digest: row for row in self.aggregator.ends()}
        assert set(rows) == {opened.digest for opened in self.aggregator.rounds}
        self.ends_are_final(rows)
        released = [o for o in self.aggregator.rounds if rows[o.digest].state == RELEASED]
        self.trained = sum(opened.manifest.trains for opened in released)
        for opened in released:
            self.release_is_of_whom_it_says(opened, rows[opened.digest])
        self.last_models_are_on_the_disk(released)
        for one, other in combinations(released, 2):
            if one.manifest.phase == other.manifest.phase or all(
                self.has_metrics(rows[opened.digest]) for opened in (one, other)
            ):
                self.two_releases_do_not_tell_of_few(one, other)
        self.numbers_grow()
        self.ledger_only_grows(rows)

    def ends_are_final(self, rows: dict[bytes, RoundRow]) -> None:
        """At most one end of each (job, round, phase), and it never changes."""
        ended = {}
        for row in rows.values():
            if row.state in {RELEASED, ABORTED}:
                assert row.reason != pb.REASON_STORAGE_FAILED
                ended[row.job, row.number, int(row.phase)] = row
        assert len(ended) == sum(row.state in {RELEASED, ABORTED} for row in rows.values())
        assert {key: ended.get(key) for key in self._ended} == self._ended
        self._ended = ended

    def release_is_of_whom_it_says(self, opened: Opened, row: RoundRow) -> None:
        assert row.statement is not None
        body = pb.Signed.FromString(row.statement).body
        statement = pb.ReleaseStatement.FromString(body)
        manifest, accepted = opened.manifest, opened.accepted
        assert set(accepted) <= set(manifest.cohort)
        assert statement.contributors == len(accepted) >= manifest.floor >= 2
        excluded = {exclusion.owner for exclusion in statement.exclusions}
        assert excluded == set(manifest.cohort) - set(accepted)
        receipts = sorted(sha256(pushed.receipt.body).digest() for pushed in accepted.values())
        assert list(statement.commitments) == receipts
        if statement.metrics or not manifest.trains:
            assert dict(statement.metrics) == pytest.approx(self.shares(opened), rel=2**-12)

    def last_models_are_on_the_disk(self, released: list[Opened]) -> None:
        """The last model of every job, and no other."""
        path = self.aggregator.store.release_path
        last = {opened.manifest.job: opened for opened in released if opened.manifest.trains}
        expected = {
            path(opened.digest): tuple(self.shares(opened).values()) for opened in last.values()
        }
        assert {
            file: struct.unpack(f"<{len(OWNERS)}d", read_model(file)[1])
            for file in (self.aggregator.path / "state/releases").iterdir()
        } == expected

    def shares(self, opened: Opened) -> dict[str, float]:
        """The one-hot oracle: each counted owner's value once, nothing of anybody else."""
        by_examples = opened.manifest.weighting == pb.WEIGHTING_EXAMPLES
        claimed = {o: p.examples if by_examples else 1 for o, p in opened.accepted.items()}
        cap = highest_cap(list(claimed.values()))
        weights = {owner: min(examples, cap) for owner, examples in claimed.items()}
        return {
            owner: float(
                Fraction(opened.accepted[owner].value) * weights[owner] / sum(weights.values())
            )
            if owner in weights
            else 0.0
            for owner in OWNERS
        }

    def has_metrics(self, row: RoundRow) -> bool:
        assert row.statement is not None
        statement = pb.ReleaseStatement.FromString(pb.Signed.FromString(row.statement).body)
        return bool(statement.metrics)

    def two_releases_do_not_tell_of_few(self, one: Opened, other: Opened) -> None:
        first, second = one.manifest, other.manifest
        if first.base_digest != second.base_digest:
            return
        counted, others = set(one.accepted), set(other.accepted)
        if counted & others:
            assert (counted, first.weighting) == (others, second.weighting)

    def numbers_grow(self) -> None:
        """In the order in which manifests were signed, and evaluations follow their training."""
        last: dict[tuple[str, int], int] = {}
        for opened in self.aggregator.rounds:
            manifest = opened.manifest
            key = manifest.job, int(manifest.phase)
            assert manifest.round > last.get(key, 0)
            last[key] = manifest.round
            if not manifest.trains:
                assert manifest.round == last[manifest.job, int(TRAIN)]

    def ledger_only_grows(self, rows: dict[bytes, RoundRow]) -> None:
        head, heads, kinds = bytes(32), [], {"open": 0, "release": 0, "abort": 0, "job": 0}
        for number, entry in enumerate(self.aggregator.store.entries(1, 10_000), 1):
            head = sha256(head + entry.kind.encode() + b"\0" + entry.body).digest()
            assert (entry.number, entry.head) == (number, head)
            heads.append(head)
            kinds[entry.kind] += 1
            assert "metrics" not in json.loads(entry.body)
        assert heads[: len(self._heads)] == self._heads
        self._heads = heads
        states = [row.state for row in rows.values()]
        assert kinds == {
            "job": len(self.aggregator.specs),
            "open": len(rows),
            "release": states.count(RELEASED),
            "abort": states.count(ABORTED),
        }


owners = st.sampled_from(OWNERS)
# Most owners, so that rounds reach their floor; any two of these may differ by a few or by many.
cohorts = st.sets(owners, max_size=3).map(lambda out: tuple(n for n in OWNERS if n not in out))
some_round = st.integers(0, 3)  # from the last one back
weightings = st.sampled_from([pb.WEIGHTING_EQUAL, pb.WEIGHTING_EQUAL, pb.WEIGHTING_EXAMPLES])


class Sequences(RuleBasedStateMachine):
    """Every rule may be refused; none may break what `Check` holds."""

    trained = 0  # how many models all sequences have released

    @initialize(weighting=weightings, floors=st.tuples(*[st.integers(2, 3)] * len(JOBS)))
    def begin(self, weighting: "pb.Weighting", floors: tuple[int, ...]) -> None:
        self.aggregator = Aggregator()
        self.check = Check(self.aggregator)
        for name, floor in zip(JOBS, floors, strict=True):
            self.aggregator.register(spec_of(name, floor, weighting))

    def teardown(self) -> None:
        if hasattr(self, "aggregator"):
            Sequences.trained += self.check.trained
            self.aggregator.end()

    @contextmanager
    def _step(self) -> Iterator[None]:
        with suppress(CairnError):
            yield
        self.aggregator.settle()

    def _round(self, back: int) -> Opened:
        rounds = self.aggregator.rounds
        return rounds[max(0, len(rounds) - 1 - back)]

    @rule(name=st.sampled_from((*JOBS, "four")), floor=st.integers(1, 4), weighting=weightings)
    def register(self, name: str, floor: int, weighting: "pb.Weighting") -> None:
        with self._step():
            self.aggregator.register(spec_of(name, floor, weighting))

    @rule(name=st.sampled_from(JOBS), cohort=cohorts, base=st.sampled_from(BASES))
    def open_the_next(self, name: str, cohort: tuple[str, ...], base: bytes) -> None:
        with self._step():
            opening = self.aggregator.next_opening(name, cohort, base)
            self.aggregator.open(name, opening)

    @rule(
        name=st.sampled_from(JOBS),
        cohort=st.lists(owners).map(tuple),
        number=st.integers(0, 4),
        phase=st.sampled_from([TRAIN, EVALUATE]),
        base=st.sampled_from(BASES),
    )
    def open_any(
        self, name: str, cohort: tuple[str, ...], number: int, phase: "pb.Phase", base: bytes
    ) -> None:
        with self._step():
            self.aggregator.open(name, Opening(number, phase, tuple(sorted(set(cohort))), base))

    @rule(name=st.sampled_from(JOBS), cohort=cohorts)
    def evaluate(self, name: str, cohort: tuple[str, ...]) -> None:
        with self._step():
            progress = self.aggregator.store.progress(name)
            base = progress.release_digest
            self.aggregator.open(name, Opening(progress.release_round, EVALUATE, cohort, base))

    @precondition(lambda self: self.aggregator.rounds)
    @rule(back=some_round, owner=owners)
    def join(self, back: int, owner: str) -> None:
        with self._step():
            self.aggregator.jobs.session(self._round(back).digest).join(owner)

    @precondition(lambda self: self.aggregator.rounds)
    @rule(back=some_round, owner=owners)
    def decline(self, back: int, owner: str) -> None:
        with self._step():
            session = self.aggregator.jobs.session(self._round(back).digest)
            session.decline(owner, pb.REASON_STOPPING)

    @precondition(lambda self: self.aggregator.rounds)
    @rule(
        back=some_round,
        owner=owners,
        how=st.sampled_from(["good", "other", "nan", "huge", "other base", "cut off"]),
        examples=st.integers(0, 10),
    )
    def push(self, back: int, owner: str, how: str, examples: int) -> None:
        with self._step():
            self.aggregator.push(self._round(back), owner, how, examples)

    @precondition(lambda self: self.aggregator.rounds)
    @rule(back=some_round, without=st.sets(owners, max_size=2), last=owners)
    def most_take_part(self, back: int, without: set[str], last: str) -> None:
        self._take_part(self._round(back), without, last, 1)

    @rule(
        name=st.sampled_from(JOBS),
        cohort=cohorts,
        base=st.sampled_from(BASES),
        without=st.one_of(st.just(set()), st.sets(owners, max_size=1)),
        last=owners,
        examples=st.integers(1, 9),
    )
    def a_whole_round(
        self,
        name: str,
        cohort: tuple[str, ...],
        base: bytes,
        without: set[str],
        last: str,
        examples: int,
    ) -> None:
        with self._step():
            opening = self.aggregator.next_opening(name, cohort, base)
            self._take_part(self.aggregator.open(name, opening), without, last, examples)

    @rule(name=st.sampled_from(JOBS), cohort=cohorts, without=st.sets(owners, max_size=1))
    def a_whole_evaluation(self, name: str, cohort: tuple[str, ...], without: set[str]) -> None:
        with self._step():
            progress = self.aggregator.store.progress(name)
            opening = Opening(progress.release_round, EVALUATE, cohort, progress.release_digest)
            self._take_part(self.aggregator.open(name, opening), without, cohort[0], 1)

    @rule(name=st.sampled_from(JOBS), cohort=cohorts, others=cohorts, base=st.sampled_from(BASES))
    def an_evaluation_between_two_trainings(
        self, name: str, cohort: tuple[str, ...], others: tuple[str, ...], base: bytes
    ) -> None:
        """The evaluation and the second training are of the first one's release."""
        self.a_whole_round(name, cohort, base, set(), cohort[0], 1)
        self.a_whole_evaluation(name, cohort, set())
        self.a_whole_round(name, others, base, set(), others[0], 1)

    def _take_part(self, opened: Opened, without: set[str], last: str, examples: int) -> None:
        present = [owner for owner in opened.manifest.cohort if owner not in without]
        for owner in present:
            with self._step():
                self.aggregator.jobs.session(opened.digest).join(owner)
        for owner in without:
            with self._step():
                session = self.aggregator.jobs.session(opened.digest)
                session.decline(owner, pb.REASON_TASK_FAILED)
        for number, owner in enumerate(sorted(present, key=lambda name: (name == last, name))):
            with self._step():
                self.aggregator.push(opened, owner, examples=(examples + number) % 9 + 1)

    @rule(seconds=st.sampled_from([1, LEASE - 1, LEASE, DEADLINE]))
    def time_passes(self, seconds: int) -> None:
        with self._step():
            self.aggregator.clock.now += seconds

    @precondition(lambda self: self.aggregator.rounds)
    @rule(back=some_round)
    def abort(self, back: int) -> None:
        with self._step():
            self.aggregator.jobs.session(self._round(back).digest).abort(pb.REASON_ABORTED)

    @rule(how_many_times_not=st.integers(0, 3))
    def crash(self, how_many_times_not: int) -> None:
        """Seldom, because nothing that is under way survives it."""
        if not how_many_times_not:
            self.aggregator.crash()

    @invariant()
    def holds(self) -> None:
        if hasattr(self, "check"):
            self.check.all()


@pytest.mark.parametrize("examples", [50, pytest.param(1000, marks=pytest.mark.chaos)])
@pytest.mark.timeout(3600)
def test_no_sequence_of_calls_and_crashes_breaks_the_promise(examples: int) -> None:
    run_state_machine_as_test(
        Sequences,
        settings=settings(
            max_examples=examples,
            stateful_step_count=40,
            derandomize=True,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
    assert Sequences.trained >= examples


@pytest.fixture
def aggregator() -> Iterator[Aggregator]:
    aggregator = Aggregator()
    yield aggregator
    aggregator.end()


def released(aggregator: Aggregator, job: str, cohort: tuple[str, ...], *dropped: str) -> bool:
    """Whether a round from the common base, in which some drop out, is released."""
    aggregator.register(spec_of(job, 2, pb.WEIGHTING_EQUAL))
    opened = aggregator.open(job, aggregator.next_opening(job, cohort, BASES[0]))
    session = aggregator.jobs.session(opened.digest)
    for owner in cohort:
        session.join(owner)
    for owner in dropped:
        session.decline(owner, pb.REASON_STOPPING)
    for owner in set(cohort) - set(dropped):
        aggregator.push(opened, owner)
    aggregator.settle()
    Check(aggregator).all()
    return aggregator.store.round(opened.digest).state == RELEASED


def test_a_round_that_was_aborted_for_its_difference_does_not_count_against_the_next(
    aggregator: Aggregator,
) -> None:
    assert released(aggregator, "one", OWNERS[:3])
    assert not released(aggregator, "two", OWNERS[:3], "carol")
    assert released(aggregator, "three", OWNERS[:3])


def test_a_crash_after_the_owners_are_counted_and_before_the_release_is_recorded_forgets_them(
    aggregator: Aggregator,
) -> None:
    """Nothing was released, so another set may be; and the round stays burnt."""
    lost = mock.patch.object(
        RoundRecorder, "_state", side_effect=KeyboardInterrupt
    )  # no `except` sees it
    with lost, pytest.raises(KeyboardInterrupt):
        released(aggregator, "one", OWNERS[:3])
    aggregator.due.clear()
    aggregator.crash()
    (row,) = aggregator.ends()
    assert (row.state, row.reason) == (ABORTED, pb.REASON_AGGREGATOR_RESTARTED)
    assert not list((aggregator.path / "state/releases").iterdir())
    assert released(aggregator, "two", OWNERS[:2])
