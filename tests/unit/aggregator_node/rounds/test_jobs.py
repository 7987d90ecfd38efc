"""A round that cannot be watched is not left open for ever."""

import shutil
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from unittest import mock

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from aggregator_node import event_log
from aggregator_node.admission import AdmissionPolicy, Opening
from aggregator_node.aggregation.workspace import MemoryBudget
from aggregator_node.rounds.bases import Bases
from aggregator_node.rounds.disclosure import ReleaseOverlap
from aggregator_node.rounds.jobs import JobRegistry
from aggregator_node.rounds.recorder import RoundRecorder
from aggregator_node.rounds.registry import RoundRegistry
from aggregator_node.storage.rows import JobRow, RoundRow
from aggregator_node.storage.store import Store
from cairn.errors import CairnError, Unavailable, UsageError
from cairn.model.schema import Schema, TensorSpec
from cairn.protocol.aggregation import Aggregation
from cairn.protocol.messages import JobSpec, digest_of, job_spec_to_bytes
from cairn.runtime.clock import Clock
from cairn.v1 import aggregator_pb2
from cairn.v1 import round_pb2 as pb

OWNERS = ("alice", "bob", "carol")
JOB = JobSpec(
    federation="clinics",
    name="tumours",
    task="task",
    settings={},
    owners=OWNERS,
    floor=2,
    rounds=1,
    weighting=pb.WEIGHTING_EQUAL,
    schema=Schema.of([TensorSpec("w", "F32", (1,))]),
    round_deadline_seconds=60,
    min_examples=1,
    max_examples=1,
)

ROUND_BYTES = 8 + len(OWNERS) * 4  # the sum of its one element, and an update of each owner


@dataclass(frozen=True)
class Parts:
    """What opens rounds, on a state of its own. There is memory for one round and no other beside it."""

    store: Store
    recorder: RoundRecorder
    rounds: RoundRegistry
    jobs: JobRegistry

    def open(self, number: int) -> bytes:
        """Open a round; returns its manifest's digest."""
        opening = Opening(number, pb.PHASE_TRAIN, OWNERS, bytes(32))
        return digest_of(self.jobs.open("coordinator", 1, "tumours", opening).body)

    def ends(self) -> list[tuple[int, int]]:
        """The state of every round, and its reason."""
        return [(row.state, row.reason) for row in self.store.rounds()]


@pytest.fixture
def parts(tmp_path: Path) -> Iterator[Parts]:
    clock = Clock()
    store = Store(tmp_path / "state", clock)
    policy = AdmissionPolicy("clinics", frozenset(OWNERS), floor=2, lease_seconds=15)
    key = Ed25519PrivateKey.generate()
    overlap = ReleaseOverlap(any_base=False)
    recorder = RoundRecorder(store, key, clock, overlap, Bases(store), event_log.write)
    rounds = RoundRegistry(
        recorder, MemoryBudget(ROUND_BYTES, updates_in_flight=2), key, clock, event_log.write
    )
    jobs = JobRegistry(lambda: policy, store, rounds, clock, event_log.write)
    jobs.register("coordinator", job_spec_to_bytes(JOB), bytes(32))
    yield Parts(store, recorder, rounds, jobs)
    rounds.abort_all()
    store.close()


def test_a_job_that_its_coordinator_has_ended_awaits_no_release_until_it_is_registered_again(
    parts: Parts,
) -> None:
    body, jobs = job_spec_to_bytes(JOB), parts.jobs
    assert not jobs.are_released()
    jobs.register("coordinator", body, bytes(32), ended=True)
    assert jobs.are_released()
    jobs.register("coordinator", body, bytes(32))
    assert not jobs.are_released()


FAILED = (aggregator_pb2.ROUND_STATE_ABORTED, pb.REASON_STORAGE_FAILED)


def test_a_round_for_which_no_thread_can_be_started_is_aborted_and_the_next_can_be_opened(
    parts: Parts,
) -> None:
    full = mock.patch.object(threading.Thread, "start", side_effect=RuntimeError("no more threads"))
    with full, pytest.raises(RuntimeError):
        parts.open(1)
    assert parts.ends() == [FAILED]
    parts.open(2)


def test_an_end_that_a_full_disk_kept_from_being_recorded_is_recorded_before_the_next_opening(
    parts: Parts,
) -> None:
    """It stayed open on the disk until a restart, and a repeated opening of its number was never ended."""
    session = parts.rounds.find(parts.open(1))
    assert session is not None
    full = mock.patch.object(parts.recorder, "abort", side_effect=Unavailable("the disk is full"))
    with full:
        session.abort(pb.REASON_ABORTED)
        session.wait_for_end(10)
        assert session.reason == pb.REASON_STORAGE_FAILED
        with pytest.raises(Unavailable):
            parts.open(2)
    assert [state for state, _ in parts.ends()] == [aggregator_pb2.ROUND_STATE_OPEN]
    parts.open(2)
    assert parts.ends() == [FAILED, (aggregator_pb2.ROUND_STATE_OPEN, pb.REASON_UNSPECIFIED)]


def test_a_state_with_releases_of_another_version_is_refused_with_what_to_do(
    tmp_path: Path,
) -> None:
    store = Store(tmp_path / "state", Clock())
    store.add_job(JobRow("tumours", "coordinator", job_spec_to_bytes(JOB)))
    # As an earlier version has it.
    body = pb.RoundManifest(
        job="tumours", round=7, protocol=2, software="0.1.0"
    ).SerializeToString()
    row = RoundRow(
        digest_of(body),
        "tumours",
        7,
        pb.PHASE_TRAIN,
        pb.Signed(body=body).SerializeToString(),
        aggregator_pb2.ROUND_STATE_RELEASED,
        statement=pb.Signed().SerializeToString(),
        release_digest=bytes(32),
    )
    store.save_round(row)
    key = Ed25519PrivateKey.generate()
    overlap, bases = ReleaseOverlap(any_base=False), Bases(store)
    with pytest.raises(
        UsageError, match=r"state has releases of another version .* round 7 of tum"
    ):
        RoundRecorder(store, key, Clock(), overlap, bases, event_log.write)
    store.close()


def test_a_round_whose_release_has_no_room_on_the_disk_is_not_opened_before_it_has(
    parts: Parts,
) -> None:
    """Owners trained for one round after the other, each of which could only be aborted."""
    needed = JOB.schema.total_bytes + (1 << 20)
    for free in (0, needed - 1):
        usage = shutil._ntuple_diskusage(needed, needed - free, free)
        full = mock.patch("shutil.disk_usage", return_value=usage)
        with full, pytest.raises(Unavailable, match="no room for this round's release") as refused:
            parts.open(1)
        assert refused.value.reason == pb.REASON_STORAGE_FAILED
    assert parts.ends() == []
    parts.open(1)


def test_room_is_wanted_for_what_an_optimizer_keeps_beside_the_release(parts: Parts) -> None:
    adam = Aggregation(
        optimizer=pb.OPTIMIZER_ADAM,
        optimizer_numbers={"lr": 0.1, "beta1": 0.9, "beta2": 0.99, "epsilon": 1e-3},
    )
    job = replace(JOB, name="stepping", aggregation=adam)
    registered = parts.jobs.register("coordinator", job_spec_to_bytes(job), bytes(32))
    floats = job.schema.total_bytes // 4
    needed = (
        job.schema.total_bytes + (8 + 2 * 4 * floats) + (1 << 20)
    )  # a step, and two numbers each
    opening = Opening(1, pb.PHASE_TRAIN, job.owners, bytes(32))
    for free, refusal in ((needed - 1, "no room"), (needed, "send it first")):
        usage = shutil._ntuple_diskusage(needed, needed - free, free)
        full = mock.patch("shutil.disk_usage", return_value=usage)
        with full, pytest.raises(CairnError, match=refusal):
            parts.jobs.open("coordinator", registered.epoch, job.name, opening)
