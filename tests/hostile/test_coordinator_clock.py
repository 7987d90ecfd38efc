"""A coordinator that reads one owner's number by the clock: it aborts a round, opens another, and waits for the owner.

An owner that was done goes on to the next model; one that is still at work does not. On the crafted base alice's
training never ends where its number is above a guess. Its file says how long its work takes, whatever the data is.
"""

import itertools
import math
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest

from cairn.v1 import round_pb2 as pb
from owner_node.records.budgets import bits_told
from tests.hostile.stage import COHORT, LINEAR, Stage, fresh_base
from tests.hostile.test_coordinator_failures import (
    BOUND,
    MAX_FAILURES,
    MAX_ROUNDS,
    RULES,
    SECRET,
    TASK,
)
from tests.scenarios.processes import until
from tests.service.network import Network, OpenRound

WORK_SECONDS = 1.0
QUESTIONS = 8
_BIASES = itertools.count(1)


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Network]:
    network = Network(tmp_path_factory.mktemp("clock"), floor=3, lease_seconds=600)
    yield network
    network.stop()


@pytest.fixture(scope="module")
def played(network: Network) -> Iterator[Stage]:
    fixed = f"max_rounds = {MAX_ROUNDS}\nwork_seconds = {WORK_SECONDS}"
    task = TASK.replace("    number =", "    (data.train / 'begun').touch()\n    number =", 1)
    stage = Stage(network, task, RULES.replace(f"max_rounds = {MAX_ROUNDS}", fixed))
    (stage.data / "value").write_text(str(SECRET))
    (stage.data / "mode").write_text("hangs")
    yield stage
    stage.close()


@pytest.fixture
def stage(played: Stage) -> Stage:
    """The stage, with an alice that has no past."""
    played.alice.kill()
    shutil.rmtree(played.state)
    played.alice = played.start_alice()
    return played


@dataclass(frozen=True)
class Asked:
    """How long alice took from a model to the next one, and what it answered in between."""

    seconds: float
    word: str


def crafted(guess: float) -> bytes:
    """Another model each time, so that its fetching is seen; the bias comes first."""
    return np.array([next(_BIASES), BOUND / guess, -0.25], "<f4").tobytes()


def invite(stage: Stage, base: bytes) -> OpenRound:
    job = stage.job(rounds=1, deadline=60)
    opened = job.open(COHORT, base)
    stage.coordinator.models[LINEAR.digest(base)] = base
    stage.invite(opened.signed, job.body)
    return opened


def answered(stage: Stage, opened: OpenRound) -> float:
    """When alice asked for the model of this round, or was seen to have declined it."""
    base, digest = opened.manifest.base_digest, opened.digest.hex()
    until(
        lambda: (
            base in stage.coordinator.fetched_at
            or digest in [entry.facts["manifest_digest"] for entry in stage.entries("declined")]
        ),
        "alice answers",
    )
    return stage.coordinator.fetched_at.get(base, time.monotonic())


def ask(stage: Stage, guess: float, *, tells: bool = False) -> Asked:
    """Abort a round as soon as its model is fetched, and see when alice goes on to another.

    A coordinator that `tells` says so to alice once her training has begun, and she asks the aggregator at once.
    """
    begun = stage.data / "begun"
    begun.unlink(missing_ok=True)
    known = len(stage.entries("declined"))
    first = invite(stage, crafted(guess))
    begins = answered(stage, first)
    first.abort()
    if tells:
        until(begun.exists, "alice trains")
        stage.tell(first.digest, reason=pb.REASON_BELOW_FLOOR)
    second = invite(stage, fresh_base())
    seconds = answered(stage, second) - begins
    second.abort()
    words = [str(entry.facts["reason"]) for entry in stage.entries("declined")[known:]]
    return Asked(seconds, words[0] if words else "")


@pytest.mark.parametrize("tells", [False, True])
def test_when_an_owner_goes_on_after_an_abort_does_not_tell_whether_it_was_done(
    stage: Stage,
    tells: bool,  # noqa: FBT001 - a parameter of the test
) -> None:
    quick = ask(stage, 2 * SECRET, tells=tells)
    endless = ask(stage, SECRET / 2, tells=tells)
    assert (quick.word, endless.word) == ("", "DEADLINE")
    assert min(quick.seconds, endless.seconds) > WORK_SECONDS


def test_an_attack_by_the_clock_ends_and_learns_no_more_than_the_bound(stage: Stage) -> None:
    low, high = 0.0, 1024.0
    words = []
    for _ in range(QUESTIONS):
        guess = (low + high) / 2
        asked = ask(stage, guess)
        words.append(asked.word)
        if asked.word == "FAILURES_SPENT":
            continue
        # More than the clock says: the coordinator is told what alice's own ledger has.
        low, high = (guess, high) if asked.word else (low, guess)
    assert low <= SECRET <= high
    assert words.count("DEADLINE") == MAX_FAILURES
    spent = words.index("FAILURES_SPENT")
    assert set(words[spent:]) == {"FAILURES_SPENT"}
    assert math.log2(1024 / (high - low)) <= bits_told(MAX_ROUNDS, MAX_FAILURES, metrics=1)


def test_an_update_that_is_ready_leaves_when_the_work_time_is_over(stage: Stage) -> None:
    opened = invite(stage, crafted(2 * SECRET))
    begins = answered(stage, opened)
    for owner in ("bob", "carol"):
        opened.join(owner)
        opened.push(owner, bytes(12), metrics={"value": 1.0})
    ended = opened.ends()
    assert ended.statement.contributors == len(COHORT)
    assert time.monotonic() - begins > WORK_SECONDS
