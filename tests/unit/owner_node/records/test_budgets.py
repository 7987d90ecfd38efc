"""What counts against a task at an owner, and how much its failures can tell."""

import math
from itertools import product
from typing import Any

import pytest

from cairn.protocol.reasons import DEPENDING_ON_DATA
from cairn.protocol.words import reason_word
from cairn.v1 import round_pb2 as pb
from owner_node.records.budgets import Budgets, bits_told

ROUND = {"manifest_digest": "aa" * 32, "phase": "train"}
OTHER = {"manifest_digest": "bb" * 32, "phase": "train"}
Entries = list[tuple[str, dict[str, Any]]]


def told(*entries: tuple[str, dict[str, Any]], joined: bool = True) -> Budgets:
    """The budgets after a round was joined and these entries followed."""
    budgets = Budgets()
    if joined:
        budgets.note("joined", ROUND | {"task": "task"})
    for kind, facts in entries:
        budgets.note(kind, ROUND | facts)
    return budgets


def test_the_default_is_24_bits() -> None:
    assert math.ceil(bits_told(max_rounds=1000, max_failures=2, metrics=0)) == 24


@pytest.mark.parametrize(("rounds", "failures"), [(1, 1), (2, 1), (2, 2), (3, 3)])
def test_no_more_stories_can_be_told_than_the_bound_has_bits(rounds: int, failures: int) -> None:
    """Every sequence of answers to so many trainings and evaluations that has at most so many failures."""
    answers = product(["counted", "NOT_COUNTED", "DEADLINE"], repeat=2 * rounds)
    stories = sum(len(story) - story.count("counted") <= failures for story in answers)
    assert math.log2(stories) <= bits_told(rounds, failures, metrics=0)


def test_each_metric_is_a_bit_for_each_phase() -> None:
    assert bits_told(10, 2, metrics=3) == bits_told(10, 2, metrics=0) + 6


@pytest.mark.parametrize("reason", DEPENDING_ON_DATA)
@pytest.mark.parametrize("kind", ["declined", "not accepted", "no release", "released"])
def test_a_cause_that_may_depend_on_the_data_is_a_failure(kind: str, reason: "pb.Reason") -> None:
    assert told((kind, {"reason": reason_word(reason), "counted": False})).failures("task") == 1


@pytest.mark.parametrize(
    "entries",
    [
        [],  # the whole node died
        [("declined", {"reason": "STOPPING"})],
        [("declined", {"reason": "UPDATE_LOST"})],
        [("declined", {"reason": "FETCH_FAILED"})],
        [("declined", {"reason": "MODEL_SUSPECT"})],
        [("not accepted", {"reason": "ROUND_ENDED"})],
        [("not accepted", {"reason": "LEASE_EXPIRED"})],
        [("no release", {"why": "the round ended without a release"})],
        [("released", {"counted": True})],
        [("released", {"counted": False, "reason": "LEASE_EXPIRED"})],
        [
            ("declined", {"reason": "FETCH_FAILED"}),
            ("released", {"counted": False, "reason": "DEADLINE"}),
        ],
    ],
    ids=str,
)
def test_what_others_did_is_no_failure(entries: Entries) -> None:
    assert told(*entries).failures("task") == 0


def test_a_round_that_was_not_joined_is_no_failure() -> None:
    assert told(("declined", {"reason": "TASK_FAILED"}), joined=False).failures("task") == 0


@pytest.mark.parametrize(
    "entries",
    [
        [("not accepted", {"reason": "DEADLINE"})],
        [("released", {"counted": False, "reason": "DEADLINE"})],
        [
            ("not accepted", {"reason": "ROUND_ENDED"}),
            ("released", {"counted": False, "reason": "DEADLINE"}),
        ],
        [
            ("declined", {"reason": "STOPPING"}),
            ("released", {"counted": False, "reason": "NOT_COUNTED"}),
        ],
        [
            ("declined", {"reason": "TASK_FAILED"}),
            ("released", {"counted": False, "reason": "NOT_COUNTED"}),
        ],
    ],
    ids=str,
)
def test_a_round_is_one_failure_however_often_it_is_told(entries: Entries) -> None:
    assert told(*entries, *entries).failures("task") == 1


def test_what_a_reset_has_forgiven_is_not_counted_when_it_is_told_once_more() -> None:
    failed = {"reason": "TASK_FAILED"}
    budgets = told(("declined", failed), ("reset", {"task": "task"}))
    budgets.note("released", ROUND | {"counted": False, "reason": "NOT_COUNTED"})
    assert budgets.failures("task") == 0
    budgets.note("joined", OTHER | {"task": "task"})
    budgets.note("declined", OTHER | failed)
    assert budgets.failures("task") == 1
    assert budgets.taken("task", pb.PHASE_TRAIN) == 2  # a reset gives no round back


def test_another_task_keeps_its_own_account() -> None:
    budgets = told(("declined", {"reason": "TASK_FAILED"}), ("reset", {"task": "another"}))
    assert (budgets.failures("task"), budgets.failures("another")) == (1, 0)


def test_a_round_is_taken_once_it_is_joined_and_once() -> None:
    budgets = told(("joined", {"task": "task"}))
    assert budgets.taken("task", pb.PHASE_TRAIN) == 1
    assert budgets.taken("task", pb.PHASE_TRAIN, besides=b"\xaa" * 32) == 0
    assert budgets.taken("task", pb.PHASE_EVALUATE) == 0


def test_the_first_metrics_of_a_task_are_those_that_its_first_update_had() -> None:
    first = {"task": "task", "metrics": {"loss": 1.0}, "dropped_metrics": ["patients"]}
    budgets = told(("sent", first), ("sent", first | {"metrics": {}}))
    assert budgets.reported("task", pb.PHASE_TRAIN) == frozenset({"loss", "patients"})
    assert budgets.reported("task", pb.PHASE_EVALUATE) is None
    budgets.note("reset", {"task": "task"})
    assert budgets.reported("task", pb.PHASE_TRAIN) is None
