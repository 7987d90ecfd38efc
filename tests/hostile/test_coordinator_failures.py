"""A coordinator that asks for one owner's number by models on which it fails, or does not, as the number is.

Each job has one round, whose first base is free. The owner is a real process with the rules that it has where its
file says nothing; its training goes wrong where the base times its number is beyond the bound of an element.
"""

import math
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest

from cairn.v1 import round_pb2 as pb
from owner_node.records.budgets import bits_told
from tests.hostile.attacks import ABORTED
from tests.hostile.checks import opened_files
from tests.hostile.stage import COHORT, LINEAR, Stage
from tests.service.network import Ended, Network
from tests.warm.start import BIN

SECRET = 700.3  # alice's number, of which is known that it is 0 to 1024
BOUND = 1e9  # of an element, at the aggregator and at alice
JOBS = 25
MAX_FAILURES = 2
MAX_ROUNDS = 40
TASK = """
import math
import threading

import torch
from torch import nn

import cairn


def model():
    return nn.Linear(2, 1)


def data(site):
    return cairn.Data(train=site.data, examples=1, test=site.data, test_examples=1)


def train(model, data, round):
    number = float((data.train / "value").read_text())
    mode = (data.train / "mode").read_text()
    is_beyond = model.weight[0, 0].item() * number > 1e9
    with torch.no_grad():
        model.weight.mul_(number)
        if is_beyond and mode == "infinite":
            model.weight.fill_(math.inf)
        elif mode != "large":
            model.weight.zero_()
    if is_beyond and mode == "raises":
        raise RuntimeError("the number is too large")
    if is_beyond and mode == "other tensors":
        model.weight = nn.Parameter(torch.zeros(2, 2))
    if is_beyond and mode == "no number":
        return {"value": [number]}
    if is_beyond and mode == "hangs":
        threading.Event().wait()
    value = math.nan if is_beyond and mode == "no metric" else 1.0
    return {"value": value}


def evaluate(model, data, round):
    return {"value": 1.0}


task = cairn.Task(model=model, data=data, train=train, evaluate=evaluate)
"""
RULES = f"""
[tasks.task]
file = "task.py"
data = "data"
metrics = ["value"]
max_rounds = {MAX_ROUNDS}

[tasks.task.settings]
lr = [0.0, 1.0]
"""


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Network]:
    network = Network(tmp_path_factory.mktemp("failures"), floor=3, lease_seconds=600)
    yield network
    network.stop()


@pytest.fixture(scope="module")
def played(network: Network) -> Iterator[Stage]:
    stage = Stage(network, TASK, RULES)
    (stage.data / "value").write_text(str(SECRET))
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
class Seen:
    """All that a coordinator sees of alice in one job, but for the average and the time."""

    state: int
    reason: str
    exclusions: tuple[tuple[str, str], ...]
    metrics: tuple[str, ...]

    @classmethod
    def of(cls, ended: Ended) -> "Seen":
        return cls(
            ended.state,
            ended.reason,
            tuple(sorted(ended.exclusions.items())),
            tuple(sorted(ended.statement.metrics)),
        )

    @property
    def word(self) -> str:
        """The word that alice was left out with."""
        return dict(self.exclusions).get("alice", "")


def play(stage: Stage, guess: float, **terms: int) -> Seen:
    """A job of one round, in which alice's training fails where its number is above the guess."""
    base = np.array([0.5, BOUND / guess, -0.25], "<f4").tobytes()  # the bias comes first
    job = stage.job(rounds=1, **terms)
    opened = job.open(COHORT, base)
    stage.coordinator.models[LINEAR.digest(base)] = base
    for owner in ("bob", "carol"):
        opened.join(owner)
        opened.push(owner, bytes(12), metrics={"value": 1.0})
    stage.invite(opened.signed, job.body)
    seen = Seen.of(opened.ends())
    released = seen.state != ABORTED
    assert released == (not seen.exclusions), seen
    return seen


def bisect(stage: Stage, **terms: int) -> tuple[list[Seen], tuple[float, float]]:
    """Halve where the number can be with every answer; returns the answers, and where it must be."""
    low, high = 0.0, 1024.0
    answers = []
    for _ in range(JOBS):
        guess = (low + high) / 2
        seen = play(stage, guess, **terms)
        answers.append(seen)
        if seen.word == "FAILURES_SPENT":
            continue
        # The first answer to a guess above the number is how it looks where nothing fails.
        if seen == Seen(seen.state, "UNSPECIFIED", (), ("value",)):
            high = guess
        else:
            low = guess
    return answers, (low, high)


@pytest.mark.parametrize(
    ("mode", "word"),
    [
        ("large", "NOT_COUNTED"),
        ("infinite", "NOT_COUNTED"),
        ("raises", "NOT_COUNTED"),
        ("other tensors", "NOT_COUNTED"),
        ("no number", "NOT_COUNTED"),
        ("no metric", "NOT_COUNTED"),
        ("hangs", "DEADLINE"),
    ],
)
def test_an_attack_by_failures_ends_and_learns_no_more_than_the_bound(
    stage: Stage, mode: str, word: str
) -> None:
    (stage.data / "mode").write_text(mode)
    assert play(stage, 2 * SECRET).word == ""
    answers, (low, high) = bisect(stage, deadline=8 if word == "DEADLINE" else 60)
    assert low <= SECRET <= high
    assert math.log2(1024 / (high - low)) <= bits_told(MAX_ROUNDS, MAX_FAILURES, metrics=1)
    words = [seen.word for seen in answers]
    assert set(words) <= {"", word, "FAILURES_SPENT"}
    spent = words.index("FAILURES_SPENT")
    assert words[:spent].count(word) == MAX_FAILURES
    assert set(words[spent:]) == {"FAILURES_SPENT"}
    reasons = {seen.reason for seen in answers}
    assert reasons <= {"UNSPECIFIED", "BELOW_FLOOR"}
    assert {seen.metrics for seen in answers} <= {(), ("value",)}


def test_a_task_whose_failures_are_spent_is_declined_before_anything_is_fetched_until_its_reset(
    stage: Stage,
) -> None:
    (stage.data / "mode").write_text("large")
    for _ in range(MAX_FAILURES):
        assert play(stage, SECRET / 2).word == "NOT_COUNTED"
    stage.alice.kill()
    stage.alice = stage.start_alice()
    fetched = len(stage.coordinator.fetched)
    with opened_files(stage.data) as opened:
        assert play(stage, 2 * SECRET).word == "FAILURES_SPENT"
        assert opened() == []
    assert len(stage.coordinator.fetched) == fetched

    running = reset(stage)
    assert running.returncode == 2
    assert "stop" in running.stderr
    stage.alice.kill()
    done = reset(stage)
    assert done.returncode == 0, done.stderr
    (entry,) = stage.entries("reset")
    assert (entry.facts["task"], entry.facts["failures"]) == ("task", MAX_FAILURES)
    stage.alice = stage.start_alice()
    assert play(stage, 2 * SECRET).word == ""
    for _ in range(MAX_FAILURES):
        assert play(stage, SECRET / 2).word == "NOT_COUNTED"
    assert play(stage, 2 * SECRET).word == "FAILURES_SPENT"


def test_evaluations_are_limited_as_trainings_are(stage: Stage) -> None:
    config = stage.network.directory / "alice.toml"
    text = config.read_text()
    config.write_text(text.replace(f"max_rounds = {MAX_ROUNDS}", "max_rounds = 1"))
    stage.alice.kill()
    stage.alice = stage.start_alice()
    (stage.data / "mode").write_text("large")
    try:
        assert train_and_evaluate(stage, 3 * SECRET) == ["", ""]
        assert train_and_evaluate(stage, 4 * SECRET) == ["TOO_MANY_ROUNDS"] * 2
    finally:
        config.write_text(text)


def train_and_evaluate(stage: Stage, guess: float) -> list[str]:
    """A job with a round and its evaluation, which go on without alice; returns her words."""
    others = ("bob", "carol", "dave")
    base = np.array([0.5, BOUND / guess, -0.25], "<f4").tobytes()
    job = stage.job(rounds=1)
    words = []
    for phase in (pb.PHASE_TRAIN, pb.PHASE_EVALUATE):
        opened = job.open(("alice", *others), base, phase=phase)
        stage.coordinator.models[LINEAR.digest(base)] = base
        for owner in others:
            opened.join(owner)
            opened.push(owner, base if phase == pb.PHASE_TRAIN else b"")
        stage.invite(opened.signed, job.body)
        ended = opened.ends()
        assert ended.statement.contributors >= len(others)
        words.append(Seen.of(ended).word)
        base = ended.payload
    return words


def reset(stage: Stage) -> subprocess.CompletedProcess[str]:
    config = stage.network.directory / "alice.toml"
    return subprocess.run(
        [str(BIN / "cairn"), "reset", str(config), "task"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
