"""An aggregator that is frozen, told to stop or has its clock set, at a moment that the test chooses."""

import signal
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from cairn.v1 import aggregator_pb2
from tests.chaos.puppet import LEASE_SECONDS, Puppet
from tests.chaos.stage import is_frozen
from tests.hostile.audit import check_books
from tests.hostile.checks import ONE_HOT, check_one_hot, one_hot
from tests.scenarios.processes import until
from tests.service.network import SECONDS, OpenRound, refused

DAY = 24 * 3600.0
COHORT = ("alice", "bob", "carol")
OPEN = aggregator_pb2.ROUND_STATE_OPEN
EITHER = {aggregator_pb2.ROUND_STATE_RELEASED, aggregator_pb2.ROUND_STATE_ABORTED}


@pytest.fixture
def puppet(tmp_path: Path) -> Iterator[Puppet]:
    puppet = Puppet(tmp_path)
    yield puppet
    if not puppet.has_ended:
        puppet.stop()
    check_books(puppet.state, puppet.key)


def opened(puppet: Puppet, deadline: int) -> OpenRound:
    """A round in which all have joined and all but carol have pushed."""
    opened = puppet.job(schema=ONE_HOT, deadline=deadline).open(COHORT)
    for owner in COHORT:
        opened.join(owner)
    for owner in ("alice", "bob"):
        opened.push(owner, one_hot(owner))
    return opened


def test_an_aggregator_that_was_frozen_over_the_deadline_counts_nothing_that_came_late(
    puppet: Puppet,
) -> None:
    round_ = opened(puppet, deadline=LEASE_SECONDS - 1)
    puppet.node.send(signal.SIGSTOP)
    until(lambda: is_frozen(puppet.node), "the aggregator is frozen")
    parts = iter(round_.parts(one_hot("carol")))
    late = puppet.intake("carol").SubmitUpdate.future(parts, timeout=SECONDS)
    puppet.advance(LEASE_SECONDS - 1)
    puppet.node.send(signal.SIGCONT)
    with refused(grpc.StatusCode.FAILED_PRECONDITION, "the round has ended"):
        late.result()
    ended = round_.ends()
    check_one_hot(ended, ["alice", "bob"])
    assert ended.exclusions == {"carol": "DEADLINE"}
    assert round_.collect() == round_.collect()


@pytest.mark.parametrize("seconds", [-DAY, 365 * DAY])
def test_a_wall_clock_that_is_set_neither_ends_a_round_nor_keeps_it_open(
    seconds: float, puppet: Puppet
) -> None:
    round_ = opened(puppet, deadline=LEASE_SECONDS - 1)
    puppet.jump(seconds)
    watching = round_.watch()
    assert next(watching).state == OPEN
    round_.join("carol")  # the aggregator has looked at its clock since
    puppet.advance(LEASE_SECONDS - 2)
    puppet.let_round_look()
    round_.push("carol", one_hot("carol"))
    check_one_hot(round_.ends(), COHORT)
    puppet.restart(kill=True)
    again = puppet.job(schema=ONE_HOT).open(COHORT)
    again.join("alice")
    puppet.advance(2 * LEASE_SECONDS)
    assert again.ends().reason == "BELOW_FLOOR"


def test_sigterm_in_the_middle_of_an_update_ends_the_aggregator_and_nothing_is_counted(
    puppet: Puppet,
) -> None:
    round_ = opened(puppet, deadline=60)
    header, *_ = round_.parts(one_hot("carol"))

    def unfinished() -> Iterator[aggregator_pb2.SubmitUpdateRequest]:
        yield header
        until(lambda: puppet.has_ended, "the aggregator ends")

    pushing = puppet.intake("carol").SubmitUpdate.future(unfinished(), timeout=2 * SECONDS)
    pushing.initial_metadata()  # its turn has come
    puppet.node.send(signal.SIGTERM)
    assert puppet.node.ends() == 0
    assert "Traceback" not in puppet.node.output()
    with pytest.raises(grpc.RpcError):
        pushing.result()
    puppet.revive()
    round_.job.coordinator = puppet.release()
    assert round_.ends().reason == "AGGREGATOR_RESTARTED"


@pytest.mark.parametrize(
    "point",
    [
        "aggregator.seal.before_release",
        "aggregator.release.file_written",
        "aggregator.release.before_commit",
        "aggregator.release.after_commit",
    ],
)
def test_sigterm_while_a_round_is_sealed_ends_the_aggregator_and_leaves_one_end_of_the_round(
    point: str, puppet: Puppet
) -> None:
    round_ = opened(puppet, deadline=60)
    puppet.arm(point, "stop")
    parts = iter(round_.parts(one_hot("carol")))
    last = puppet.intake("carol").SubmitUpdate.future(parts, timeout=SECONDS)
    until(lambda: is_frozen(puppet.node), "the aggregator comes to the point")
    puppet.node.send(signal.SIGTERM)
    puppet.node.send(signal.SIGCONT)
    assert puppet.node.ends() == 0
    assert "Traceback" not in puppet.node.output()
    last.cancel()
    puppet.revive()
    round_.job.coordinator = puppet.release()
    ended = round_.ends()
    assert ended.state in EITHER
    if ended.state == aggregator_pb2.ROUND_STATE_RELEASED:
        check_one_hot(ended, COHORT)
