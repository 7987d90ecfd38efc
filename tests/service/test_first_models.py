"""The model that a job starts from, brought to an aggregator that needs it."""

from collections.abc import Iterator

import grpc
import numpy as np
import pytest

from cairn.protocol.aggregation import Aggregation
from cairn.protocol.words import word_of
from cairn.v1 import round_pb2 as pb
from tests.service.network import Job, Network, refused

INVALID, NOT_NOW = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.FAILED_PRECONDITION
DENIED = grpc.StatusCode.PERMISSION_DENIED
STEPS = Aggregation(optimizer=pb.OPTIMIZER_SGD, optimizer_numbers={"lr": 0.5, "momentum": 0.0})
BASE = np.array([1.0, 2.0, 3.0, 4.0], "<f4").tobytes()


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Network]:
    network = Network(tmp_path_factory.mktemp("models"), floor=2, lease_seconds=600)
    yield network
    network.stop()


@pytest.fixture
def job(network: Network) -> Job:
    return network.job(aggregation=STEPS)


def test_a_round_is_opened_once_the_model_that_it_steps_from_was_brought(job: Job) -> None:
    with refused(NOT_NOW, "send it first", "MODEL_MISSING"):
        job.open(base=BASE)
    job.bring(BASE)
    job.bring(BASE)  # the same again
    manifest = job.open(base=BASE).manifest
    assert word_of(pb.Optimizer, manifest.aggregation.optimizer) == "sgd"


def test_another_model_takes_the_place_of_one_that_no_round_was_opened_with(job: Job) -> None:
    job.bring(bytes(16))
    job.bring(BASE)
    with refused(NOT_NOW, "send it first", "MODEL_MISSING"):
        job.open(base=bytes(16))
    job.bring(BASE)  # it was not the one that the round wanted, and is gone
    job.open(base=BASE)


def test_no_model_takes_the_place_of_the_one_that_an_open_round_starts_from(job: Job) -> None:
    """Else its coordinator could end a round that is sealed, and as often as it likes."""
    job.bring(BASE)
    opened = job.open(base=BASE)
    with refused(NOT_NOW, "is open, and another model may not take the place"):
        job.bring(b"\1" * 16)
    job.bring(BASE)  # the same again
    for owner in ("alice", "bob"):
        opened.join(owner)
        opened.push(owner, bytes(16))
    assert opened.ends().payload


def test_bytes_of_another_digest_are_refused(job: Job) -> None:
    with refused(INVALID, "not the model of the digest", "BASE_MISMATCH"):
        job.bring(BASE, digest=b"d" * 32)
    with refused(INVALID, "not the model of the digest", "BASE_MISMATCH"):
        job.bring(b"")
    with refused(grpc.StatusCode.RESOURCE_EXHAUSTED, "more bytes than the 16", "TOO_MUCH"):
        job.bring(bytes(20))
    with refused(INVALID, "every chunk but the last"):
        job.bring(BASE, chunk_bytes=1)


def test_a_job_that_takes_the_mean_of_whole_updates_needs_no_model(network: Network) -> None:
    with refused(NOT_NOW, "needs no model at the aggregator"):
        network.job().bring(BASE)


def test_a_job_with_a_release_takes_no_other_model(job: Job) -> None:
    job.bring(BASE)
    job.run({"alice": bytes(16), "bob": bytes(16)}, base=BASE)
    with refused(NOT_NOW, "goes on from its last release", "CHAIN_BROKEN"):
        job.bring(b"\1" * 16)


def test_nobody_brings_the_model_of_anothers_job(network: Network, job: Job) -> None:
    rival = network.job(coordinator="rival", aggregation=STEPS)
    job.coordinator = network.release("rival")
    with refused(DENIED, "another coordinator's job"):
        job.bring(BASE)
    rival.coordinator = network.release("alice")
    with refused(DENIED):
        rival.bring(BASE)
