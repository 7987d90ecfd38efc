"""Random sequences of what coordinators, owners, time and faults can do to an aggregator, over the network.

Each step is made of a real aggregator and of a reference in plain Python, and all that can be seen must agree. By
default they are the same each time; `make chaos` draws many more from a seed that it prints:

    CAIRN_SEED=SEED .venv/bin/pytest -m chaos tests/chaos/test_sequences.py
"""

import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from cairn.runtime.failpoints import NAMES
from tests.chaos.puppet import LEASE_SECONDS, Puppet
from tests.chaos.scene import DEADLINE_SECONDS, MEMBERS, Scene
from tests.service.network import OWNERS

POINTS = [name for name in NAMES if name.startswith("aggregator.")]
ACTIONS = ["kill", "raise:EIO", "raise:ENOSPC"]
FLAWS = ["", "", "", "short", "corrupt", "nan", "base"]
CALLS = ["register", "open", "abort", "collect", "watch"]

members = st.sampled_from(MEMBERS)
owners = st.sampled_from((*MEMBERS, *OWNERS))  # the stranger seldom
cohorts = st.sets(members, min_size=2).map(lambda some: tuple(sorted(some)))
any_cohorts = st.sets(st.sampled_from(OWNERS), min_size=1).map(lambda some: tuple(sorted(some)))
backs = st.sampled_from([0, 0, 0, 1, 2])  # how many rounds ago
sometimes = st.sampled_from([False, False, True])


class Puppets:
    """One aggregator for all sequences, and another after a failure."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._made: list[Puppet] = []
        self.is_broken = True

    def one(self) -> Puppet:
        if self.is_broken:
            self.close()
            home = self._home / f"puppet-{len(self._made)}"
            home.mkdir()
            self._made.append(Puppet(home))
            self.is_broken = False
        return self._made[-1]

    def close(self) -> None:
        for puppet in self._made:
            if not puppet.has_ended:
                puppet.node.kill()


class Sequences(RuleBasedStateMachine):
    """Every rule may be refused, where the reference says so."""

    puppets: Puppets

    @initialize(floor=st.sampled_from([2, 2, 3]))
    def begin(self, floor: int) -> None:
        self.scene = Scene(self.puppets.one(), floor)
        self.puppets.is_broken = True  # until this sequence is at its end

    def teardown(self) -> None:
        if hasattr(self, "scene") and self.is_good:
            self.scene.finish()
            self.puppets.is_broken = False

    @invariant()
    def agrees(self) -> None:
        self.is_good = False
        self.scene.check()
        self.is_good = True

    def number(self, back: int) -> int:
        return max(1, len(self.scene.reference.rounds) - back)

    def has_rounds(self) -> bool:
        return bool(self.scene.reference.rounds)

    @rule(cohort=cohorts, again=sometimes)
    def open_the_next(self, cohort: tuple[str, ...], *, again: bool) -> None:
        self.scene.open(1, cohort, again=again)

    @rule(ahead=st.integers(-1, 2), cohort=any_cohorts, other_base=st.booleans())
    def open_any(self, ahead: int, cohort: tuple[str, ...], *, other_base: bool) -> None:
        self.scene.open(ahead, cohort, other_base=other_base)

    @rule(cohort=cohorts, absent=st.sets(members, max_size=1))
    def a_whole_round(self, cohort: tuple[str, ...], absent: set[str]) -> None:
        self.scene.open(1, cohort)
        if self.scene.reference.current:
            self.most_take_part(0, absent)

    @precondition(has_rounds)
    @rule(back=backs, absent=st.sets(members, max_size=1))
    def most_take_part(self, back: int, absent: set[str]) -> None:
        number = self.number(back)
        cohort = self.scene.reference.rounds[number - 1].cohort
        for owner in cohort:
            if owner in absent:
                self.scene.decline(number, owner)
            else:
                self.scene.join(number, owner)
        for owner in cohort:
            if owner not in absent:
                self.scene.push(number, owner)

    @precondition(has_rounds)
    @rule(back=backs, owner=owners, again=sometimes)
    def join(self, back: int, owner: str, *, again: bool) -> None:
        self.scene.join(self.number(back), owner, again=again)

    @precondition(has_rounds)
    @rule(back=backs, owner=owners)
    def decline(self, back: int, owner: str) -> None:
        self.scene.decline(self.number(back), owner)

    @precondition(has_rounds)
    @rule(back=backs, owner=owners, flaw=st.sampled_from(FLAWS), other=sometimes, again=sometimes)
    def push(self, back: int, owner: str, flaw: str, *, other: bool, again: bool) -> None:
        self.scene.push(self.number(back), owner, flaw=flaw, other=other, again=again)

    @precondition(lambda self: self.scene.reference.current)
    @rule(owner=members)
    def break_off(self, owner: str) -> None:
        self.scene.break_off(self.number(0), owner)

    @precondition(has_rounds)
    @rule(back=backs, owner=owners)
    def ask_for_the_receipt(self, back: int, owner: str) -> None:
        self.scene.ask_for_receipt(self.number(back), owner)

    @precondition(has_rounds)
    @rule(back=backs)
    def abort(self, back: int) -> None:
        self.scene.abort(self.number(back))

    @precondition(has_rounds)
    @rule(back=backs, offset=st.sampled_from([0, 1, 100_000]), again=sometimes)
    def collect(self, back: int, offset: int, *, again: bool) -> None:
        self.scene.collect(self.number(back), offset, again=again)

    @rule()
    def take_over(self) -> None:
        self.scene.take_over()

    @precondition(lambda self: len(self.scene.jobs) > 1)
    @rule(call=st.sampled_from(CALLS))
    def a_process_that_was_replaced_asks(self, call: str) -> None:
        self.scene.old_process(call)

    @rule()
    def register_other_rules(self) -> None:
        self.scene.other_spec()

    @rule(
        seconds=st.sampled_from([1, LEASE_SECONDS - 1, LEASE_SECONDS, DEADLINE_SECONDS]),
    )
    def time_passes(self, seconds: int) -> None:
        self.scene.advance(seconds)

    @rule(days=st.integers(1, 400))
    def the_wall_clock_is_put_on(self, days: int) -> None:
        self.scene.puppet.jump(24 * 3600 * days)

    @rule(kill=st.booleans(), how_many_times_not=st.integers(0, 2))
    def restart(self, how_many_times_not: int, *, kill: bool) -> None:
        """Seldom, because it takes a second."""
        if not how_many_times_not:
            self.scene.restart(kill=kill)

    @rule(name=st.sampled_from(POINTS), action=st.sampled_from(ACTIONS))
    def arm(self, name: str, action: str) -> None:
        """The next time that the aggregator comes there, it meets this fault."""
        self.scene.puppet.arm(name, action)


@pytest.fixture
def puppets(tmp_path: Path) -> Iterator[Puppets]:
    puppets = Puppets(tmp_path)
    yield puppets
    puppets.close()


def run(puppets: Puppets, number: int, examples: int, steps: int) -> None:
    print(f"CAIRN_SEED={number}")  # noqa: T201 - pytest shows it where the test fails
    machine = seed(number)(type("Sequences", (Sequences,), {"puppets": puppets}))
    how = settings(
        max_examples=examples,
        stateful_step_count=steps,
        database=None,
        deadline=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    try:
        run_state_machine_as_test(machine, settings=how)
    except BaseException as error:
        error.add_note(f"CAIRN_SEED={number}")
        raise


@pytest.mark.timeout(600)
def test_an_aggregator_does_what_the_reference_does_in_any_sequence_of_calls_and_faults(
    puppets: Puppets,
) -> None:
    run(puppets, number=1, examples=30, steps=25)


@pytest.mark.chaos
@pytest.mark.timeout(3600)
def test_and_so_it_does_in_many_more_that_nobody_has_chosen(puppets: Puppets) -> None:
    chosen = os.environ.get("CAIRN_SEED")
    run(puppets, int(chosen) if chosen else random.SystemRandom().getrandbits(32), 200, 50)
