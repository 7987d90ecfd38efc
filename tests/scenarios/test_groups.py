"""A job whose owners take turns in groups, in a federation of real processes."""

from collections.abc import Callable
from hashlib import sha256

import pytest

from tests.scenarios.federation import Federation
from tests.scenarios.processes import until
from tests.scenarios.test_verify import state_of, verify

MakeFederation = Callable[..., Federation]

SIX = {"alice": 1.0, "bob": -0.3, "carol": 0.7, "dave": 2.5, "erin": -1.1, "frank": 0.2}
TERMS = {"floor": 3, "fraction": 0.5, "rounds": 4, "seed": 11}


def rank(*words: str) -> bytes:
    """Where something stands in the order of this job, as ARCHITECTURE.md says."""
    return sha256("\0".join(("11", "halving", *words)).encode()).digest()


def in_turns(rounds: int) -> list[list[str]]:
    """The groups of the first rounds, by plain hashlib."""
    dealt = sorted(SIX, key=lambda owner: rank("owner", owner))
    groups = [sorted(dealt[0::2]), sorted(dealt[1::2])]
    cycles = (rounds + 1) // 2
    order = (sorted(groups, key=lambda g: rank("turn", str(c), g[0])) for c in range(cycles))
    return [group for cycle in order for group in cycle][:rounds]


def numbers_of(groups: list[list[str]]) -> list[int]:
    return [1 + sorted(map(tuple, in_turns(2))).index(tuple(group)) for group in groups]


def test_groups_take_turns_also_where_the_coordinator_is_killed_and_started_again(
    federate: MakeFederation, monkeypatch: pytest.MonkeyPatch
) -> None:
    federation = federate(SIX, floor=3)
    federation.aggregator()
    federation.owners()
    with monkeypatch.context() as environment:
        environment.setenv("CAIRN_FAILPOINTS", "coordinator.checkpoint.before=kill@2")
        environment.setenv("CAIRN_FAILPOINTS_IN", "ward")
        assert federation.coordinator(**TERMS).ends() == -9
    coordinator = federation.coordinator(**TERMS)
    assert coordinator.ends() == 0, coordinator.output()
    turns = in_turns(4)
    for owner in SIX:
        expected = [number for number, group in enumerate(turns, 1) if owner in group]
        assert federation.runs(owner) == expected
        assert len(expected) == 2
    federation.check_model(*turns)
    history = federation.history()
    assert [line["group"] for line in history] == numbers_of(turns)
    assert [line["contributors"] for line in history] == [3] * 4
    assert [line["left_out"] for line in history] == [[]] * 4
    one, two = sorted(map(", ".join, in_turns(2)))
    output = coordinator.output()
    assert f"Each round is of one of 2 groups. 1: {one}; 2: {two}\n" in output
    assert f"Round 4/4   3 owners of group {history[3]['group']}" in output
    code, output = verify(federation, federation.out)
    assert code == 0, output
    assert "ledger.jsonl: the 4 cohorts of 'halving' are each of one of its groups" in output
    release = ("--statement", federation.out / "release.json")
    ledger = ("--ledger", federation.out)
    code, output = verify(federation, state_of(federation, turns[3][0]), *ledger, *release)
    assert code == 0, output
    assert "release.json: halving round 4: counted" in output


def test_a_group_that_dies_is_passed_over_and_the_job_ends_with_the_other(
    federate: MakeFederation,
) -> None:
    stays, dies = in_turns(2)
    federation = federate(SIX, floor=3, lease_seconds=2)
    for owner in dies:
        federation.gate(owner, 2)
    federation.aggregator()
    owners = federation.owners()
    coordinator = federation.coordinator(**TERMS)
    with federation.held(dies[0], 2):
        until(lambda: all(2 in runs_so_far(federation, owner) for owner in dies), "all train")
        for owner in dies:
            owners[owner].kill()
    assert coordinator.ends() == 0, coordinator.output()
    federation.check_model(*[stays] * 4)
    history = federation.history()
    assert [line["round"] for line in history] == [1, 3, 4, 5]
    assert [line["group"] for line in history] == numbers_of([stays] * 4)
    output = coordinator.output()
    assert "Round 2: no release (BELOW_FLOOR)\n" in output
    turns = in_turns(5)
    for number in (3, 4, 5):
        words = (
            f"Round {number}: it is the turn of group {numbers_of([dies])[0]}, of which fewer than 3"
            " attend; another takes it\n"
        )
        assert (words in output) == (turns[number - 1] == dies)
    assert "another takes it" in output
    code, verified = verify(federation, federation.out)
    assert code == 0, verified


def runs_so_far(federation: Federation, owner: str) -> list[int]:
    runs = federation.home / "data" / owner / "runs"
    return federation.runs(owner) if runs.exists() else []


def test_with_too_few_owners_for_any_group_the_job_ends_and_says_who_is_missing(
    federate: MakeFederation,
) -> None:
    federation = federate(SIX, floor=3)
    federation.aggregator()
    coordinator = federation.coordinator(**TERMS, gather_seconds=5)
    assert coordinator.ends() == 1
    missing, output = ", ".join(sorted(SIX)), coordinator.output()
    waiting = f"Waiting for {missing}, at most 5 s: 0 owners of at least 3 of one group so far\n"
    assert waiting in output
    assert (
        "error: after gather_seconds = 5 only 0 of group 1 and 0 of group 2 of at least 3 owners attend."
        f" Not there: {missing}. Start their" in output
    )
    assert "Traceback" not in output


def test_a_fraction_that_the_floor_does_not_allow_is_a_mistake_in_the_file(
    federate: MakeFederation,
) -> None:
    federation = federate({"alice": 1.0, "bob": -0.3, "carol": 0.7, "dave": 0.1}, floor=2)
    coordinator = federation.coordinator(floor=3, fraction=0.5)
    assert coordinator.ends() == 2
    assert (
        "fraction = 0.5 of 4 owners, with floor = 3, makes but one group: two groups need 6 owners"
        in coordinator.output()
    )
    assert "Traceback" not in coordinator.output()
