"""The soak's verdict, by figures made up for it: what has grown or cost too much is found, and nothing else."""

from collections.abc import Callable, Mapping

import pytest

from tests.containers.soak_report import Kill, Sample, findings, lost_seconds, usual_seconds

OWNERS = ("alice", "bob", "carol")
NONE: Mapping[str, float] = {}


def life(seconds: int, slopes: Mapping[str, float] = NONE, pid: int = 7) -> list[Sample]:
    """Samples of a process, every two seconds, of which some figures grow by so much a second."""

    def at(key: str, first: float, second: int) -> float:
        return first + slopes.get(key, 0.0) * second

    return [
        Sample(
            "carol",
            second,
            pid,
            int(at("descriptors", 15, second)),
            int(at("threads", 10, second)),
            at("mebibytes", 90.0, second),
        )
        for second in range(0, seconds, 2)
    ]


@pytest.mark.parametrize("key", ["descriptors", "threads", "mebibytes"])
def test_a_process_that_grows_in_a_long_life_is_found(key: str) -> None:
    slow = {"descriptors": 0.01, "threads": 0.01, "mebibytes": 0.02}[key]
    (found,) = findings(life(1800, {key: slow}), [], [], OWNERS)
    assert "carol grew in its longest life" in found


@pytest.mark.parametrize(
    "samples",
    [
        lambda: life(1800),
        lambda: life(40, {"mebibytes": 3.0}),  # it is still warming up
        lambda: life(300) + life(1800, pid=8),  # two lives, and none of them grew
    ],
)
def test_a_process_that_is_steady_or_young_is_not_found(
    samples: Callable[[], list[Sample]],
) -> None:
    assert list(findings(samples(), [], [], OWNERS)) == []


ROUNDS = [float(second) for second in range(10, 101, 2)]  # a release every two seconds


def test_a_killed_owner_costs_what_its_round_took_longer() -> None:
    released = [*ROUNDS, 117.0, 119.0]
    kill = Kill("bob", 101.0, 103.0)
    assert usual_seconds(released, [kill]) == 2.0
    assert lost_seconds(kill, released, 2.0, OWNERS) == 15.0
    assert list(findings([], [kill], released, OWNERS)) == []


def test_an_aggregator_costs_what_goes_by_between_its_start_and_a_release() -> None:
    released = [*ROUNDS, 110.0, 112.0]
    kill = Kill("aggregator", 101.0, 105.0)
    assert lost_seconds(kill, released, 2.0, OWNERS) == 3.0


@pytest.mark.parametrize("victim", ["bob", "aggregator", "coordinator"])
def test_a_kill_that_costs_more_than_it_may_is_found(victim: str) -> None:
    (found,) = findings([], [Kill(victim, 101.0, 103.0)], [*ROUNDS, 121.0], OWNERS)
    assert f"the kill of {victim} at 101 s cost" in found


def test_a_kill_after_which_no_round_ended_cost_nothing_that_is_known() -> None:
    assert lost_seconds(Kill("bob", 101.0, 103.0), ROUNDS, 2.0, OWNERS) == 0.0
