"""Owners that die, misbehave or refuse, in a federation of real processes."""

import signal
from collections.abc import Callable

from tests.scenarios.federation import Federation
from tests.scenarios.processes import until

MakeFederation = Callable[..., Federation]

TWO = {"alice": 1.0, "bob": -0.3}
THREE = {**TWO, "carol": 0.7}


def test_an_owner_that_is_killed_while_it_trains_and_started_again_is_missed_by_no_release(
    federate: MakeFederation,
) -> None:
    federation = federate(TWO, lease_seconds=2)
    federation.gate("bob", 2)
    federation.aggregator()
    owners = federation.owners()
    coordinator = federation.coordinator(rounds=4)
    with federation.held("bob", 2):
        owners["bob"].kill()
    federation.owner("bob")
    assert coordinator.ends() == 0
    history = federation.history()
    assert [line["contributors"] for line in history] == [2, 2, 2, 2]
    federation.check_model(*[["alice", "bob"]] * 4)


def test_an_owner_that_is_killed_for_good_costs_its_lease_and_the_rounds_go_on(
    federate: MakeFederation,
) -> None:
    federation = federate(THREE, lease_seconds=2)
    federation.gate("carol", 2)
    federation.aggregator()
    owners = federation.owners()
    coordinator = federation.coordinator(rounds=5)
    with federation.held("carol", 2):
        owners["carol"].kill()
    assert coordinator.ends() == 0
    history = federation.history()
    assert [line["contributors"] for line in history] == [3, 2, 2, 2, 2]
    assert "Round 2: carol was not counted (LEASE_EXPIRED)" in coordinator.output()
    assert coordinator.output().count("was not counted") == 1  # it is invited to no later round
    federation.check_model(["alice", "bob", "carol"], *[["alice", "bob"]] * 4)


def test_below_the_floor_the_job_ends_and_says_who_is_missing(federate: MakeFederation) -> None:
    federation = federate(TWO, lease_seconds=2)
    federation.gate("bob", 2)
    federation.aggregator()
    owners = federation.owners()
    coordinator = federation.coordinator(rounds=4, gather_seconds=3)
    with federation.held("bob", 2):
        owners["bob"].kill()
    assert coordinator.ends() == 1
    output = coordinator.output()
    assert "Waiting for bob, at most 3 s: 1 owner of at least 2 so far\n" in output
    assert (
        "error: after gather_seconds = 3 only 1 of at least 2 owners attend. Not there: bob."
        in output
    )
    assert "run this again: the job goes on from its checkpoint" in output
    assert "Traceback" not in output
    federation.check_model(["alice", "bob"])
    federation.owner("bob")
    assert federation.coordinator(rounds=4, gather_seconds=60).ends() == 0
    assert [line["contributors"] for line in federation.history()] == [2, 2, 2, 2]
    federation.check_model(*[["alice", "bob"]] * 4)


def test_an_owner_that_stops_in_good_order_says_so_and_is_not_waited_for(
    federate: MakeFederation,
) -> None:
    federation = federate(THREE)
    federation.gate("carol", 1)
    federation.aggregator()
    owners = federation.owners()
    coordinator = federation.coordinator(rounds=2)
    with federation.held("carol", 1):
        owners["carol"].send(signal.SIGTERM)
        assert owners["carol"].ends() == 0
    assert coordinator.ends() == 0
    assert "Round 1: carol was not counted (STOPPING)" in coordinator.output()
    assert "Traceback" not in owners["carol"].output()


def test_an_owner_that_fails_again_and_again_is_left_out_for_some_rounds_and_comes_back(
    federate: MakeFederation,
) -> None:
    federation = federate(THREE)
    federation.set_mode("carol", "raise")
    federation.gate("bob", 5)
    federation.aggregator()
    federation.owners()
    coordinator = federation.coordinator(rounds=7)
    with federation.held("bob", 5):
        federation.set_mode("carol", "good")
    assert coordinator.ends() == 0
    two, three = ["alice", "bob"], sorted(THREE)
    assert federation.runs("carol") == [1, 2, 3, 6, 7]
    history = federation.history()
    assert [line["left_out"] for line in history] == [[], [], [], ["carol"], ["carol"], [], []]
    assert [line["contributors"] for line in history] == [2, 2, 2, 2, 2, 3, 3]
    words = "Round 3: carol was not counted again and again; it is left out until round 6\n"
    assert coordinator.output().count(words) == 1
    federation.check_model(*[two] * 5, *[three] * 2)


def test_a_coordinator_that_is_started_again_still_leaves_it_out(
    federate: MakeFederation,
) -> None:
    federation = federate(THREE)
    federation.set_mode("carol", "raise")
    federation.gate("bob", 4)
    federation.aggregator()
    federation.owners()
    coordinator = federation.coordinator(rounds=5)
    with federation.held("bob", 4):
        coordinator.kill()
        coordinator = federation.coordinator(rounds=5)
        coordinator.says("Going on after 3 rounds")
    assert coordinator.ends() == 0
    assert federation.runs("carol") == [1, 2, 3]
    assert [line["contributors"] for line in federation.history()] == [2] * 5


def test_every_kind_of_refusal_is_one_word_to_the_coordinator_and_whole_to_its_owner(
    federate: MakeFederation,
) -> None:
    modes = {"raises": "raise", "shapes": "shape", "nans": "nan"}
    reasons = {
        "raises": "TASK_FAILED",
        "shapes": "WRONG_TENSORS",
        "nans": "NON_FINITE",
        "tasks": "UNKNOWN_TASK",
        "ranges": "SETTING_REFUSED",
        "floors": "FLOOR_TOO_LOW",
    }
    federation = federate(THREE | dict.fromkeys(reasons, 9.0))
    for owner, mode in modes.items():
        federation.set_mode(owner, mode)
    federation.edit("tasks", "[tasks.halving", "[tasks.doubling")
    federation.edit("ranges", "lr = [0.0, 1.0]", "lr = [0.0, 0.4]")
    federation.edit("floors", "floor = 2", "floor = 4")
    aggregator = federation.aggregator()
    owners = federation.owners()
    coordinator = federation.coordinator(rounds=1, settings={"lr": 0.5})
    assert coordinator.ends() == 0
    for owner, reason in reasons.items():
        (declined,) = owners[owner].events("declined")
        assert declined["why"] == reason
        told = "NOT_COUNTED" if owner in modes else reason
        assert f"Round 1: {owner} was not counted ({told})" in coordinator.output()
    for reason in ("TASK_FAILED", "WRONG_TENSORS", "NON_FINITE"):
        assert reason not in coordinator.output() + aggregator.output()
    assert federation.history()[0]["contributors"] == 3
    federation.check_model(sorted(THREE))
    assert "RuntimeError: patient 471122330099 has no blood pressure" in owners["raises"].output()
    assert 'task.py", line' in owners["raises"].output()
    for others in (coordinator, aggregator, owners["alice"]):
        assert "471122330099" not in others.output()
        assert "RuntimeError" not in others.output()
    assert "has a value that is NaN or infinite" in owners["nans"].output()
    assert "this owner allows 0 to 0.4" in owners["ranges"].output()
    assert "asks for the task halving; this owner's file has doubling" in owners["tasks"].output()
    assert "is 2, this owner's file asks for 4" in owners["floors"].output()
    run = b"".join(path.read_bytes() for path in federation.out.iterdir() if path.is_file())
    assert b"471122330099" not in run


def test_an_aggregator_that_is_killed_and_started_again_costs_one_round(
    federate: MakeFederation,
) -> None:
    federation = federate(TWO)
    federation.gate("bob", 2)
    aggregator = federation.aggregator()
    federation.owners()
    coordinator = federation.coordinator(rounds=4)
    with federation.held("bob", 2):
        aggregator.kill()
        federation.aggregator()
    assert coordinator.ends() == 0
    assert "Round 2: no release (AGGREGATOR_RESTARTED)" in coordinator.output()
    assert [line["round"] for line in federation.history()] == [1, 3, 4, 5]
    federation.check_model(*[["alice", "bob"]] * 4)


def test_an_aggregator_that_is_stopped_and_started_again_costs_one_round(
    federate: MakeFederation,
) -> None:
    federation = federate(TWO)
    federation.gate("bob", 2)
    aggregator = federation.aggregator()
    federation.owners()
    coordinator = federation.coordinator(rounds=3)
    with federation.held("bob", 2):
        aggregator.send(signal.SIGTERM)
        assert aggregator.ends() == 0
        federation.aggregator()
    assert coordinator.ends() == 0
    assert "Round 2: no release (AGGREGATOR_RESTARTED)" in coordinator.output()
    federation.check_model(*[["alice", "bob"]] * 3)
    assert "Traceback" not in aggregator.output()


def test_a_task_that_hangs_is_left_out_at_the_deadline(federate: MakeFederation) -> None:
    federation = federate(THREE)
    federation.gate("carol", 2)
    federation.aggregator()
    owners = federation.owners()
    coordinator = federation.coordinator(rounds=3, round_deadline_seconds=10)
    with federation.held("carol", 2):
        until(lambda: len(federation.history()) == 3, "the job goes on without it")
    assert coordinator.ends() == 0
    assert "Round 2: carol was not counted (DEADLINE)" in coordinator.output()
    assert owners["carol"].process.poll() is None
