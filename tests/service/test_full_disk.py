"""A disk that is really full: what cannot be written is refused, nothing is half there, and it goes on by itself."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest

from cairn.model.schema import Schema, TensorSpec
from cairn.protocol.aggregation import Aggregation
from cairn.transport.health_client import ask_health
from cairn.v1 import aggregator_pb2
from cairn.v1 import round_pb2 as pb
from tests.hostile.audit import check_books
from tests.scenarios.processes import until
from tests.service.network import SECONDS, Network, refused
from tests.small_disk import may_mount, on_small_disk

pytestmark = pytest.mark.skipif(not may_mount(), reason="this account may not mount a small disk")
FLOATS = 1 << 18
MODEL = Schema.of([TensorSpec("weight", "F32", (FLOATS,))])  # 1 MiB
UPDATES = {
    "alice": np.zeros(FLOATS, "<f4").tobytes(),
    "bob": np.ones(FLOATS, "<f4").tobytes(),
}
HALVES = np.full(FLOATS, 0.5, "<f4").tobytes()


@pytest.fixture
def network(tmp_path: Path) -> Iterator[Network]:
    """An aggregator whose state has 8 MiB."""
    network = Network(tmp_path, on_small_disk(tmp_path / "ward/aggregator/state", "8m"))
    yield network
    network.stop()


class Filler:
    """Takes all the room on the aggregator's disk, and gives it back."""

    def __init__(self, network: Network) -> None:
        self.state = Path(f"/proc/{network.node.pid}/root{network.state}")
        self._file = self.state / "filler"

    def fill(self) -> None:
        with self._file.open("wb", buffering=0) as file:
            for size in (1 << 16, 1 << 9, 1):
                try:
                    while True:
                        file.write(bytes(size))
                except OSError:
                    continue

    def empty(self) -> None:
        self._file.unlink()


def is_serving(network: Network, who: str = "alice") -> bool:
    return ask_health(network.channel(who, network.intake_at), SECONDS).serving


def test_a_round_that_a_full_disk_met_is_aborted_and_the_job_goes_on_when_there_is_room(
    network: Network, tmp_path: Path
) -> None:
    job = network.job(schema=MODEL)
    disk = Filler(network)
    opened = job.open()
    for owner in UPDATES:
        opened.join(owner)
    assert is_serving(network)
    disk.fill()
    assert not is_serving(network)
    for owner, update in UPDATES.items():  # an update needs no disk here
        opened.push(owner, update)
    ended = opened.ends()
    assert (ended.state, ended.reason) == (
        aggregator_pb2.ROUND_STATE_ABORTED,
        "STORAGE_FAILED",
    )
    with refused(grpc.StatusCode.UNAVAILABLE, reason="STORAGE_FAILED"):
        job.open(number=2)
    disk.empty()
    until(lambda: is_serving(network), "it serves again")
    assert job.run(UPDATES, number=2).payload == HALVES
    books = shutil.copytree(disk.state, tmp_path / "books")  # SQLite follows the link out of there
    check_books(books, network.key)
    assert [found.suffix for found in (books / "releases").iterdir()] == [".safetensors"]


def test_a_job_is_not_registered_on_a_full_disk(network: Network) -> None:
    disk = Filler(network)
    disk.fill()
    with refused(grpc.StatusCode.UNAVAILABLE, reason="STORAGE_FAILED"):
        network.job(schema=MODEL)
    disk.empty()
    assert network.job(schema=MODEL).run(UPDATES).payload == HALVES


def test_a_private_release_that_a_full_disk_kept_from_being_recorded_has_spent_nothing(
    network: Network,
) -> None:
    """One release of noise 2 tells epsilon 2.166 of an owner, and the budget allows no second."""
    numbers = {"norm": 1.0, "noise": 2.0, "epsilon": 2.5, "delta": 1e-5}
    job = network.job(
        schema=MODEL,
        owners=("alice", "bob"),
        aggregation=Aggregation(rule=pb.RULE_PRIVATE_MEAN, rule_numbers=numbers),
    )
    job.bring(HALVES)
    disk, opened = Filler(network), job.open(base=HALVES)
    for owner in UPDATES:
        opened.join(owner)
    disk.fill()
    for owner, update in UPDATES.items():
        opened.push(owner, update)
    assert opened.ends().reason == "STORAGE_FAILED"
    disk.empty()
    released = job.run(UPDATES, number=2, base=HALVES)
    assert released.statement.privacy.epsilon == pytest.approx(2.1657, abs=1e-4)
    with refused(grpc.StatusCode.FAILED_PRECONDITION, reason="BUDGET_SPENT"):
        job.open(number=3, base=released.payload)
