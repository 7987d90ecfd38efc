"""What an owner allows of statistics, by its file and its ledger."""

from dataclasses import replace
from typing import Any

import pytest

from cairn.protocol.aggregation import Aggregation
from cairn.protocol.statistics import Column, Statistics, base_digest_of, schema_of
from cairn.protocol.words import reason_word
from cairn.v1 import round_pb2 as pb
from owner_node.invitation import Declined, Invited
from owner_node.records.budgets import Budgets
from owner_node.statistics_rules import check_statistics
from owner_node.task_rules import TaskRules
from tests.unit.owner_node.test_policy import DIGEST, JOB, MANIFEST, NOTHING, POLICY

AGE, SIZE = Column("age", 0.0, 100.0, 10), Column("size", 0.0, 5.0, 10)
STATISTICS = Statistics((AGE, SIZE), 10)
COUNTED = Aggregation(pb.CONTENT_STATISTICS, pb.RULE_SUM)
COUNTS = replace(
    JOB,
    settings={},
    rounds=1,
    statistics=STATISTICS,
    schema=schema_of(STATISTICS),
    aggregation=COUNTED,
)
OPENED = replace(
    MANIFEST,
    round=1,
    aggregation=COUNTED,
    base_digest=base_digest_of(COUNTS.schema),
    previous_release_digest=b"",
)
INVITED = Invited(OPENED, DIGEST, COUNTS)
OTHER = {"manifest_digest": "bb" * 32, "phase": "train", "job": "figures", "round": 1}
JOINED = ("joined", OTHER | {"task": "tumours"})
SENT = ("sent", OTHER | {"task": "tumours", "columns": ["age", "height"], "metrics": {}})
Entry = tuple[str, dict[str, Any]]


def told(*entries: Entry) -> Budgets:
    budgets = Budgets()
    for kind, facts in entries:
        budgets.note(kind, facts)
    return budgets


UNLESS_SAID = TaskRules()


def check(
    invited: Invited = INVITED, budgets: Budgets | None = None, rules: TaskRules = UNLESS_SAID
) -> None:
    check_statistics({"tumours": rules}, invited, budgets or Budgets())


def reason_of(
    invited: Invited = INVITED, budgets: Budgets | None = None, rules: TaskRules = UNLESS_SAID
) -> str:
    with pytest.raises(Declined) as decline:
        check(invited, budgets, rules)
    return reason_word(decline.value.reason)


def test_statistics_are_taken_part_in_unless_the_file_says_otherwise() -> None:
    POLICY.check(INVITED, NOTHING)  # though the job sets nothing of what the task lists
    check()


def test_an_owner_that_does_not_list_statistics_declines_them() -> None:
    only = replace(POLICY, tasks={"tumours": TaskRules(contents=frozenset({pb.CONTENT_WEIGHTS}))})
    with pytest.raises(Declined, match=r"asks for statistics; this owner's file allows weights"):
        only.check(INVITED, NOTHING)


def test_a_training_is_none_of_its_business() -> None:
    check(Invited(MANIFEST, DIGEST, JOB), rules=TaskRules(min_cell=1000))


@pytest.mark.parametrize(("min_cell", "allowed"), [(10, True), (11, False)])
def test_cells_smaller_than_the_owners_own_are_declined(*, min_cell: int, allowed: bool) -> None:
    if allowed:
        check(rules=TaskRules(min_cell=min_cell))
    else:
        assert reason_of(rules=TaskRules(min_cell=min_cell)) == "JOB_REFUSED"


@pytest.mark.parametrize(
    "manifest",
    [replace(OPENED, base_digest=b"b" * 32), replace(OPENED, phase=pb.PHASE_EVALUATE)],
)
def test_what_starts_from_a_model_is_no_job_of_statistics(manifest: Any) -> None:
    assert reason_of(Invited(manifest, DIGEST, COUNTS)) == "BASE_MISMATCH"


@pytest.mark.parametrize(
    "entries",
    [
        [JOINED],
        [JOINED, SENT, ("no release", OTHER)],
        [JOINED, SENT, ("released", OTHER | {"counted": False, "reason": "LEASE_EXPIRED"})],
        [("joined", OTHER | {"task": "other"}), ("sent", SENT[1] | {"task": "other"})],
        [JOINED, ("sent", SENT[1] | {"columns": ["height"]})],
        [JOINED, ("sent", SENT[1] | {"manifest_digest": DIGEST.hex()})],  # of this very round
    ],
)
def test_a_column_that_has_not_left_for_a_release_may_leave(entries: list[Entry]) -> None:
    check(budgets=told(*entries))


@pytest.mark.parametrize(
    "entries",
    [
        [JOINED, SENT],  # how it ended is not known
        [JOINED, SENT, ("released", OTHER | {"counted": True})],
        [JOINED, SENT, ("released", OTHER | {"counted": False, "why": "no receipt"})],
        [JOINED, SENT, ("not accepted", OTHER | {"reason": "ROUND_ENDED"})],
        [JOINED, SENT, ("reset", {"task": "tumours", "failures": 1})],
    ],
)
def test_a_column_that_may_have_left_does_not_leave_again(entries: list[Entry]) -> None:
    assert reason_of(budgets=told(*entries)) == "TOO_MANY_ROUNDS"
    check(budgets=told(*entries), rules=TaskRules(max_statistics=2))


def test_statistics_do_not_decide_which_metrics_a_task_reports() -> None:
    budgets = told(JOINED, SENT)
    assert budgets.reported("tumours", pb.PHASE_TRAIN) is None
