"""An aggregator that dies while it releases an optimizer's step: the release and the state stay together."""

from contextlib import suppress
from pathlib import Path

import grpc
import numpy as np
import pytest

from cairn.protocol.aggregation import Aggregation
from cairn.v1 import aggregator_pb2
from cairn.v1 import round_pb2 as pb
from tests.service.network import FEDERATION, Job, Network

MOMENTUM = Aggregation(optimizer=pb.OPTIMIZER_SGD, optimizer_numbers={"lr": 0.5, "momentum": 0.5})
COHORT = ("alice", "bob", "carol")
BASE = np.array([1, 2, 3, 4], "<f4")


def updates_of(number: int) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(number)
    return {owner: generator.normal(0, 1, 4).astype("<f4") for owner in COHORT}


def release_of(job: Job, number: int, base: np.ndarray) -> np.ndarray:
    updates = {owner: update.tobytes() for owner, update in updates_of(number).items()}
    return np.frombuffer(job.run(updates, number, base.tobytes()).payload, "<f4")


@pytest.mark.parametrize(
    ("point", "is_released"),
    [
        ("aggregator.seal.before_release", False),
        ("aggregator.release.file_written", False),
        ("aggregator.release.before_commit", False),
        ("aggregator.release.after_commit", True),
    ],
)
def test_after_a_death_in_a_release_the_optimizer_goes_on_from_the_state_of_the_last_release(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, point: str, *, is_released: bool
) -> None:
    monkeypatch.setenv("CAIRN_FAILPOINTS", f"{point}=kill@2")
    monkeypatch.setenv("CAIRN_FAILPOINTS_IN", FEDERATION)
    network = Network(tmp_path, floor=2, lease_seconds=600)
    job = network.job(owners=COHORT, aggregation=MOMENTUM)
    job.bring(BASE.tobytes())
    releases = {1: release_of(job, 1, BASE)}
    opened = job.open(COHORT, releases[1].tobytes(), 2)
    for owner, update in updates_of(2).items():
        opened.join(owner)
        with suppress(grpc.RpcError):  # the last update seals the round: its answer may be lost
            opened.push(owner, update.tobytes())
    network.node.ends()
    monkeypatch.delenv("CAIRN_FAILPOINTS")
    network.restart(kill=True)
    job.coordinator = network.release()
    job.register()
    ended = opened.ends()
    if is_released:
        releases[2] = np.frombuffer(ended.payload, "<f4")
    else:
        assert (ended.state, ended.reason) == (
            aggregator_pb2.ROUND_STATE_ABORTED,
            "AGGREGATOR_RESTARTED",
        )
    for number in (3, 4):
        releases[number] = release_of(job, number, releases[max(releases)])
    network.stop()
    assert len(list(network.state.rglob("*.safetensors"))) == 2  # a release, and its state
    base, buffer = BASE.astype(float), np.zeros(4)
    for number, released in releases.items():
        gradient = base - np.mean(list(updates_of(number).values()), axis=0, dtype=float)
        buffer = 0.5 * buffer + gradient
        assert released == pytest.approx(base - 0.5 * buffer, rel=1e-5, abs=1e-5)
        base = released.astype(float)
