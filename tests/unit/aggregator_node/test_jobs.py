"""A round that cannot be watched is not left open for ever."""

import threading
from pathlib import Path
from unittest import mock

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from aggregator_node.averages import Averages
from aggregator_node.jobs import Jobs
from aggregator_node.live_rounds import LiveRounds
from aggregator_node.memory import Memory
from aggregator_node.policy import Opening, Policy
from aggregator_node.recording import Recorder
from aggregator_node.store import Store
from cairn.clock import Clock
from cairn.messages import JobSpec, job_spec_to_bytes
from cairn.tensors import Schema, TensorSpec
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


def test_a_round_for_which_no_thread_can_be_started_is_aborted_and_the_next_can_be_opened(
    tmp_path: Path,
) -> None:
    clock = Clock()
    store = Store(tmp_path / "state", clock)
    policy = Policy("clinics", frozenset(OWNERS), floor=2)
    key = Ed25519PrivateKey.generate()
    averages = Averages(any_base=False)
    recorder = Recorder(store, key, clock, averages)
    memory = Memory(ROUND_BYTES, updates_in_flight=2)  # for one round, and for no other beside it
    rounds = LiveRounds(recorder, memory, key, clock)
    jobs = Jobs(lambda: policy, 15, store, rounds, averages, clock)
    jobs.register("coordinator", job_spec_to_bytes(JOB), bytes(32))

    def opening(number: int) -> Opening:
        return Opening(number, pb.PHASE_TRAIN, OWNERS, bytes(32))

    full = mock.patch.object(threading.Thread, "start", side_effect=RuntimeError("no more threads"))
    with full, pytest.raises(RuntimeError):
        jobs.open("coordinator", 1, "tumours", opening(1))

    (row,) = store.rounds()
    assert (row.state, row.reason) == (
        aggregator_pb2.ROUND_STATE_ABORTED,
        pb.REASON_STORAGE_FAILED,
    )
    jobs.open("coordinator", 1, "tumours", opening(2))
    rounds.abort_all()
    store.close()
