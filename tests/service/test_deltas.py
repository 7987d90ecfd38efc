"""Updates that travel as deltas from the job's last release, against a real aggregator."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

from cairn.model.schema import Schema, TensorSpec
from cairn.model.update_encoding import UpdateLayout
from cairn.v1 import aggregator_pb2
from cairn.v1 import round_pb2 as pb
from tests.service.network import Job, Network, OpenRound, refused

SHAPE = (8, 16)
SCHEMA = Schema.of([TensorSpec("weight", "F32", SHAPE)])
OWNERS = ("alice", "bob")


@pytest.fixture
def network(tmp_path: Path) -> Iterator[Network]:
    started = Network(tmp_path, floor=2)
    yield started
    started.stop()


@pytest.fixture
def job(network: Network) -> Job:
    """A job whose updates are to travel as bf16 deltas, with one release of whole updates."""
    spec = network.job(schema=SCHEMA, rounds=9).spec
    job = Job(
        network, replace(spec, name="deltas", encoding=pb.ENCODING_BF16_DELTAS), "coordinator"
    )
    job.register()
    return job


def first_release(job: Job) -> bytes:
    opened = job.open()
    assert opened.manifest.encoding == pb.ENCODING_WHOLE
    for number, owner in enumerate(OWNERS):
        opened.join(owner)
        opened.push(owner, np.full(SHAPE, 1.5 + number, "<f4").tobytes())
    payload = opened.ends().payload
    assert np.array_equal(np.frombuffer(payload, "<f4"), np.full(128, 2.0, np.float32))
    return payload


def push_deltas(opened: OpenRound, owner: str, deltas: NDArray[Any]) -> None:
    payload = deltas.astype(ml_dtypes.bfloat16).tobytes()
    layout = UpdateLayout(SCHEMA, pb.ENCODING_BF16_DELTAS)
    commit = aggregator_pb2.UpdateCommit(payload_digest=layout.digest(payload))
    parts = [
        aggregator_pb2.SubmitUpdateRequest(header=opened.header(total_bytes=len(payload))),
        aggregator_pb2.SubmitUpdateRequest(chunk=payload),
        aggregator_pb2.SubmitUpdateRequest(commit=commit),
    ]
    opened.join(owner)
    opened.submit(owner, parts)


def damage(network: Network) -> None:
    (release,) = (network.state / "releases").iterdir()
    content = bytearray(release.read_bytes())
    content[-1] ^= 1
    release.write_bytes(content)


def test_the_mean_of_deltas_in_as_few_bits_is_added_to_the_last_release(job: Job) -> None:
    base = first_release(job)
    opened = job.open(base=base, number=2)
    assert opened.manifest.encoding == pb.ENCODING_BF16_DELTAS
    deltas = np.arange(128, dtype=np.float32).reshape(SHAPE) / 256  # of 7 bits: bf16 has 8
    push_deltas(opened, "alice", deltas)
    push_deltas(opened, "bob", -3 * deltas[:, ::-1] / 4)
    ended = opened.ends()
    halves = (-3 * deltas[:, ::-1] / 4).astype(ml_dtypes.bfloat16).astype(np.float64)
    mean = ((deltas.astype(np.float64) + halves) / 2).astype(ml_dtypes.bfloat16)
    expected = (2.0 + mean.astype(np.float64)).astype(np.float32)
    assert ended.payload == expected.tobytes()
    assert ended.statement.encoding == pb.ENCODING_BF16_DELTAS


def test_a_whole_update_is_refused_in_a_round_of_deltas(job: Job) -> None:
    opened = job.open(base=first_release(job), number=2)
    opened.join("alice")
    with refused(grpc.StatusCode.INVALID_ARGUMENT, "its layout has 256"):
        opened.push("alice", bytes(SCHEMA.total_bytes))


def test_a_restart_keeps_the_base_of_deltas(network: Network, job: Job) -> None:
    base = first_release(job)
    network.restart(kill=True)
    again = Job(network, job.spec, "coordinator")
    again.register()
    opened = again.open(base=base, number=2)
    assert opened.manifest.encoding == pb.ENCODING_BF16_DELTAS
    for owner in OWNERS:
        push_deltas(opened, owner, np.full(SHAPE, 0.5, np.float32))
    assert np.array_equal(np.frombuffer(opened.ends().payload, "<f4"), np.full(128, 2.5))


def test_a_damaged_base_is_never_built_upon_and_the_next_updates_are_whole(
    network: Network, job: Job
) -> None:
    base = first_release(job)
    opened = job.open(base=base, number=2)
    damage(network)
    for owner in OWNERS:
        push_deltas(opened, owner, np.zeros(SHAPE, np.float32))
    ended = opened.ends()
    assert (ended.state, ended.reason) == (aggregator_pb2.ROUND_STATE_ABORTED, "MODEL_MISSING")
    after = job.open(base=base, number=3)
    assert after.manifest.encoding == pb.ENCODING_WHOLE
    for owner in OWNERS:
        after.join(owner)
        after.push(owner, np.full(SHAPE, 4.0, "<f4").tobytes())
    assert np.array_equal(np.frombuffer(after.ends().payload, "<f4"), np.full(128, 4.0))
