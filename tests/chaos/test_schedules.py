"""Jobs during which one fault follows another, at any node: it dies, freezes for a while, or its disk fails.

By default a few seeds, always the same; `make chaos` draws more and prints each:

    CAIRN_SEED=SEED .venv/bin/pytest -m chaos 'tests/chaos/test_schedules.py' -k 'nobody_has_chosen and 0'
"""

import os
import random
import signal
import time

import pytest

from cairn.runtime.failpoints import NAMES
from tests.chaos.invariants import check, check_nothing_half_written
from tests.chaos.marking import OWNERS
from tests.chaos.stage import LEASE_SECONDS, Stage, is_frozen
from tests.scenarios.processes import until

ROUNDS = 6
ACTIONS = ("kill", "kill", "stop", "exit", "raise:EIO", "raise:ENOSPC")
MOST_FAULTS = 3  # of one node
SECONDS = 240.0  # for a job: each fault may cost a lease or the start of a node


def schedule(draw: random.Random) -> dict[str, list[str]]:
    """The faults of each node, one after each of its starts."""
    roles = {"aggregator": "aggregator", "coordinator": "coordinator"} | dict.fromkeys(
        OWNERS, "owner"
    )
    return {
        node: [
            f"{draw.choice([n for n in NAMES if n.startswith(role)])}={draw.choice(ACTIONS)}"
            f"@{draw.randint(1, 4)}"
            for _ in range(draw.randint(0, MOST_FAULTS))
        ]
        for node, role in roles.items()
    }


class Thawing:
    """Lets a frozen node go on after a while: at once, or when the others have long given it up."""

    def __init__(self, stage: Stage, draw: random.Random) -> None:
        self._stage = stage
        self._draw = draw
        self._due: dict[int, float] = {}

    def tend(self) -> bool:
        for node in self._stage.running.values():
            if is_frozen(node):
                wait = self._draw.uniform(0, 2 * LEASE_SECONDS)
                if time.monotonic() >= self._due.setdefault(node.pid, time.monotonic() + wait):
                    node.send(signal.SIGCONT)
        return self._stage.tend()


def survive(stage: Stage, seed: int) -> None:
    draw = random.Random(seed)
    planned = schedule(draw)
    print(f"CAIRN_SEED={seed}: {planned}")  # noqa: T201 - pytest shows it where the test fails
    with stage.explained():
        stage.begin({node: faults for node, faults in planned.items() if faults}, ROUNDS)
        with stage.nothing_left_behind():
            until(Thawing(stage, draw).tend, f"{stage.job} ends", SECONDS)
        check(stage)
        check_nothing_half_written(stage)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_job_survives_a_random_schedule_of_faults(seed: int, stage: Stage) -> None:
    survive(stage, seed)


@pytest.mark.chaos
@pytest.mark.timeout(300)
@pytest.mark.parametrize("number", range(20))
def test_a_job_survives_schedules_that_nobody_has_chosen(number: int, stage: Stage) -> None:
    chosen = os.environ.get("CAIRN_SEED")
    seed = int(chosen) if chosen else random.SystemRandom().getrandbits(32)
    survive(stage, seed + number)
