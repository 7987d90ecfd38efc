"""Each role's container is killed, frozen or cut off in each phase of a round, and the job ends as it should.

The phase is exact: a node stops itself at a point in the middle of the second round, and goes on once the
fault is there.
"""

import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import pytest

from tests.chaos.conftest import Faultless
from tests.chaos.invariants import check, check_nothing_half_written, released_rounds
from tests.chaos.marking import OWNERS
from tests.containers.boxes import Boxes

pytestmark = [pytest.mark.containers, pytest.mark.timeout(600)]

# Who stops where.
PHASES = {
    "gathering": ("coordinator", "coordinator.open.before_call"),
    "training": ("bob", "owner.train.done"),
    "pushing": ("bob", "owner.push.partial"),
    "sealing": ("aggregator", "aggregator.seal.before_release"),
    "collecting": ("coordinator", "coordinator.collect.partial"),
}


@contextmanager
def killed(boxes: Boxes, victim: str) -> Iterator[None]:
    """It is started again, as everything is that has ended."""
    boxes.running[victim].kill()
    yield
    boxes.tend()


@contextmanager
def paused(boxes: Boxes, victim: str) -> Iterator[None]:
    with boxes.paused(victim):
        yield
        boxes.await_others(f"the others notice that {victim} is frozen")


@contextmanager
def disconnected(boxes: Boxes, victim: str) -> Iterator[None]:
    with boxes.disconnected(victim):
        yield
        boxes.await_others(f"the others notice that {victim} is cut off")


@contextmanager
def moved(boxes: Boxes, victim: str) -> Iterator[None]:
    """No connection outlives that: the others find it by its name again."""
    with boxes.disconnected(victim, moved=True):
        yield
        boxes.await_others(f"the others notice that {victim} is cut off")


Fault = Callable[[Boxes, str], AbstractContextManager[None]]
FAULTS: dict[str, Fault] = {
    "kill": killed,
    "pause": paused,
    "disconnect": disconnected,
    "move": moved,
}
# What `make containers` has of them: each fault for each role but the slow moves, and each phase.
ALWAYS = {
    ("aggregator", "kill", "sealing"),
    ("aggregator", "pause", "pushing"),
    ("aggregator", "disconnect", "training"),
    ("coordinator", "kill", "collecting"),
    ("coordinator", "pause", "gathering"),
    ("coordinator", "disconnect", "training"),
    ("bob", "kill", "pushing"),
    ("bob", "pause", "training"),
    ("bob", "disconnect", "pushing"),
}
CASES = [
    pytest.param(*case, marks=[] if case in ALWAYS else pytest.mark.chaos, id="-".join(case))
    for victim in ("aggregator", "coordinator", "bob")
    for fault in FAULTS
    for phase in PHASES
    for case in [(victim, fault, phase)]
]


@pytest.mark.parametrize(("victim", "fault", "phase"), CASES)
def test_the_job_ends_whatever_befalls_a_container_in_a_phase(
    victim: str, fault: str, phase: str, boxes: Boxes, faultless: Faultless
) -> None:
    holder, point = PHASES[phase]
    with boxes.explained():
        boxes.begin({holder: f"{point}=stop@2"})
        boxes.await_frozen(holder)
        with FAULTS[fault](boxes, victim):
            if (victim, fault) != (holder, "kill"):
                boxes.running[holder].send(signal.SIGCONT)
        boxes.run_to_end()
        assert boxes.restarts == ([(victim, 137)] if fault == "kill" else [])
        check(boxes, faultless.model)
        check_nothing_half_written(boxes)
        # An owner that is cut off, or whose coordinator is, may come back too late for a round.
        if "bob" not in {victim, holder} and fault in {"kill", "pause"}:
            assert set(released_rounds(boxes).values()) == {frozenset(OWNERS)}
