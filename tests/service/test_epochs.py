"""Two processes of one coordinator: the one that registered the job last is in charge, for good."""

import itertools
from collections.abc import Callable
from copy import copy
from typing import Any

import grpc
import pytest

from cairn.v1 import aggregator_pb2
from cairn.v1 import round_pb2 as pb
from tests.service.network import PROCESS, SECONDS, Job, Network, OpenRound, refused

UPDATES = {"alice": bytes([0, 0, 128, 63] * 4), "bob": bytes(16)}  # ones and zeros
HALVES = bytes([0, 0, 0, 63] * 4)
INVALID = grpc.StatusCode.INVALID_ARGUMENT
PRECONDITION = grpc.StatusCode.FAILED_PRECONDITION


def fenced() -> Any:
    return refused(PRECONDITION, "has registered the job", "FENCED")


def taken_over(job: Job) -> Job:
    """The same job in the hands of another process."""
    other = copy(job)
    other.process = bytes([job.epoch]) * 32
    assert other.register().epoch == job.epoch + 1
    return other


def as_seen_by(opened: OpenRound, job: Job) -> OpenRound:
    return OpenRound(job, opened.signed)


def pushed(opened: OpenRound) -> OpenRound:
    for owner, update in UPDATES.items():
        opened.join(owner)
        opened.push(owner, update)
    return opened


def test_a_process_has_one_epoch_however_often_it_registers_the_job(network: Network) -> None:
    job = network.job()
    assert [job.register().epoch for _ in range(3)] == [1, 1, 1]
    other = taken_over(job)
    assert [other.register().epoch for _ in range(3)] == [2, 2, 2]
    assert network.job().epoch == 1  # another job's epochs are its own


def test_a_process_from_before_another_is_refused_whatever_it_asks(network: Network) -> None:
    job = network.job()
    opened = job.open()
    released = pushed(opened)
    released.ends()
    taken_over(job)
    calls: list[Callable[[], object]] = [
        lambda: job.open(number=2, base=HALVES),
        job.open,  # known: it would be answered with the manifest
        lambda: list(released.watch()),
        released.collect,
        released.abort,
        job.register,
    ]
    for call in itertools.chain(calls, calls):
        with fenced():
            call()


def test_a_round_that_is_open_goes_on_in_the_hands_of_the_next(network: Network) -> None:
    job = network.job()
    opened = job.open()
    opened.join("alice")
    other = taken_over(job)
    assert other.register().open_manifest == opened.signed
    with fenced():
        opened.abort()
    ended = as_seen_by(pushed(opened), other).ends()
    assert ended.payload == HALVES
    assert other.run(UPDATES, number=2, base=HALVES).payload == HALVES


def test_who_watches_a_round_is_told_at_its_end_that_another_has_taken_over(
    network: Network,
) -> None:
    job = network.job()
    opened = job.open()
    watched = opened.watch()
    assert next(watched).state == aggregator_pb2.ROUND_STATE_OPEN
    other = taken_over(job)
    as_seen_by(opened, other).abort()
    with fenced():
        list(watched)


@pytest.mark.parametrize("epoch", [0, 2, 2**64 - 1])
def test_an_epoch_that_was_never_given_is_refused(network: Network, epoch: int) -> None:
    job = network.job()
    opened = job.open()
    job.epoch = epoch
    for call in (lambda: job.open(number=2), opened.abort, opened.collect):
        with refused(INVALID, "was never given", "MALFORMED"):
            call()


@pytest.mark.parametrize("process", [b"", PROCESS[1:], PROCESS + b"p"])
def test_a_process_names_itself_by_32_bytes(network: Network, process: bytes) -> None:
    job = network.job()
    job.process = process
    with refused(INVALID, "process has", "MALFORMED"):
        job.register()


@pytest.mark.parametrize("kill", [True, False], ids=["SIGKILL", "SIGTERM"])
def test_epochs_outlive_the_aggregator(own_network: Network, *, kill: bool) -> None:
    job = own_network.job()
    other = taken_over(job)
    own_network.restart(kill=kill)
    job.coordinator = other.coordinator = own_network.release()
    with fenced():
        job.register()
    with fenced():
        job.open()
    assert other.register().epoch == 2
    assert other.run(UPDATES).payload == HALVES
    assert taken_over(other).epoch == 3


def test_no_more_than_the_last_processes_are_kept(network: Network) -> None:
    job = network.job()
    first, newest = job, job
    for _ in range(40):
        newest = taken_over(newest)
    assert newest.epoch == 41
    with fenced():
        first.open()
    request = aggregator_pb2.OpenRoundRequest(
        job=job.spec.name,
        round=1,
        phase=pb.PHASE_TRAIN,
        cohort=("alice", "bob"),
        base_digest=job.spec.schema.digest(job.first_base),
        epoch=41,
    )
    newest.coordinator.OpenRound(request, timeout=SECONDS)
