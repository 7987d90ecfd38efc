"""Every point in the code that a fault can hit: the process dies there, freezes, or its disk fails.

Whatever happens, the job ends once the node is back, nobody is counted twice, and all records agree.
"""

import ast
import signal
from collections import Counter
from pathlib import Path

import pytest

from cairn.runtime.failpoints import NAMES
from tests.chaos.conftest import Faultless
from tests.chaos.invariants import check, check_nothing_half_written
from tests.chaos.stage import Stage
from tests.scenarios.processes import until

ROOT = Path(__file__).parents[2]
ACTIONS = ("kill", "stop", "raise:EIO", "raise:ENOSPC")
VICTIMS = {"aggregator": "aggregator", "coordinator": "coordinator", "owner": "bob"}
# Points that a job comes to once; at all others the fault comes the second time, when something was kept.
ONCE = {
    "aggregator.job.before_commit",
    "aggregator.job.before_reply",
    "coordinator.run.before_checkpoint",
    "coordinator.job.finished",
}
# Points of a job that looks for its best release. Only here is there one: it evaluates, and takes longer.
OF_THE_BEST = {"coordinator.best.model_saved", "coordinator.best.statement_saved"}
# Beside every kill, what the default run has of the other actions: one for each place where bytes become
# durable or a peer waits. `make chaos` has all of them.
ALWAYS = {
    ("aggregator.push.complete", "stop"),
    ("aggregator.release.before_commit", "stop"),
    ("coordinator.invite.sent", "stop"),
    ("owner.train.done", "stop"),
    ("aggregator.open.before_commit", "raise:ENOSPC"),
    ("aggregator.release.file_written", "raise:ENOSPC"),
    ("aggregator.release.before_commit", "raise:EIO"),
    ("aggregator.release.after_commit", "raise:EIO"),
    ("coordinator.model.saved", "raise:ENOSPC"),
    ("coordinator.checkpoint.before", "raise:EIO"),
    ("owner.ledger.before_commit", "raise:ENOSPC"),
    ("owner.ledger.before_commit", "raise:EIO"),
    ("owner.push.partial", "raise:EIO"),
}
CASES = [
    pytest.param(
        name,
        action,
        marks=[] if action == "kill" or (name, action) in ALWAYS else pytest.mark.chaos,
    )
    for name in NAMES
    for action in ACTIONS
]


def points_in_the_code() -> Counter[str]:
    """The names with which `failpoint` is called, and how often each stands there."""
    packages = ("cairn", "aggregator_node", "coordinator", "owner_node")
    found: Counter[str] = Counter()
    for path in (path for package in packages for path in (ROOT / package).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "failpoint":
                (name,) = node.args
                assert isinstance(name, ast.Constant), f"{path}:{node.lineno}"
                found[str(name.value)] += 1
    return found


def test_every_name_stands_at_one_place_in_the_code_and_every_place_has_a_name() -> None:
    assert points_in_the_code() == Counter(NAMES)


def test_a_normal_run_reaches_every_point(faultless: Faultless) -> None:
    assert set(NAMES) - faultless.reached == OF_THE_BEST  # which the tests of these points reach


@pytest.mark.parametrize(("name", "action"), CASES)
def test_the_job_ends_and_nobody_is_lost_or_counted_twice(
    name: str, action: str, stage: Stage, faultless: Faultless
) -> None:
    victim = VICTIMS[name.partition(".")[0]]
    with stage.explained():
        faults = {victim: f"{name}={action}@{1 if name in ONCE else 2}"}
        if name in OF_THE_BEST:
            stage.begin(faults, rounds=3, looks_for_best=True)
        else:
            stage.begin(faults)
        with stage.nothing_left_behind():
            if action == "stop":
                stage.await_stop(victim)
                stage.running[victim].send(signal.SIGCONT)
            stage.run_to_end()
        assert name in stage.reached
        if action == "kill":
            until(lambda: stage.tend() and stage.restarts, f"{victim} is killed")
            assert stage.restarts == [(victim, -signal.SIGKILL)]
        if action == "stop":
            assert stage.restarts == []
        assert "Traceback" not in stage.output_of(victim) or action.startswith("raise")
        check(stage, None if name in OF_THE_BEST else faultless.model)
        check_nothing_half_written(stage)


def test_a_coordinator_that_dies_once_it_decided_on_the_best_release_keeps_that_one(
    stage: Stage,
) -> None:
    with stage.explained():
        faults = {"coordinator": "coordinator.checkpoint.after=kill@2"}
        stage.begin(faults, rounds=3, looks_for_best=True)
        stage.run_to_end()
        assert stage.restarts == [("coordinator", -signal.SIGKILL)]
        check(stage)
        check_nothing_half_written(stage)
