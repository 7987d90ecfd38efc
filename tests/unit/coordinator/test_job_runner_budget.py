"""A job that may tell only so much of one owner: what is said at its start and its rounds, and how it ends."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from cairn.errors import WrongState
from cairn.protocol.aggregation import Aggregation
from cairn.protocol.privacy import PrivacyBudget
from cairn.v1 import round_pb2 as pb
from coordinator.console import show
from coordinator.events import BudgetSpent, JobStarted, RoundFinished
from coordinator.release_download import Release
from coordinator.round_runner import Ended
from tests.unit.coordinator.test_job_runner import START, Bench, history, value_of
from tests.unit.owner_node.test_policy import JOB

# Nine releases of noise 2 tell epsilon 7.59, and ten 8.08, by the accountants of others.
NUMBERS = {"norm": 1.0, "noise": 2.0, "epsilon": 8.0, "delta": 1e-5}
PRIVATE = Aggregation(rule=pb.RULE_PRIVATE_MEAN, rule_numbers=NUMBERS)
BUDGET = PrivacyBudget(noise=2.0, epsilon=8.0, delta=1e-5)
SPENT = WrongState("the budget of tumours is spent", pb.REASON_BUDGET_SPENT)


def private_bench(path: Path, evaluates: bool = False) -> Bench:  # noqa: FBT001, FBT002 - as Bench has it
    bench = Bench(path, rounds=100, evaluates=evaluates)
    bench.spec.aggregation = PRIVATE
    return bench


def stating(release: Callable[[int], Release], number: int, epsilon: float) -> Ended:
    made = release(number)
    made.statement.privacy.CopyFrom(pb.Privacy(epsilon=epsilon, delta=1e-5))
    return Ended(made, pb.REASON_UNSPECIFIED, ())


def test_a_job_whose_budget_is_spent_ends_as_one_that_has_all_its_rounds(tmp_path: Path) -> None:
    bench = private_bench(tmp_path / "run")
    bench.ends = [stating(bench.release, 1, 2.5), stating(bench.release, 2, 3.5), SPENT]
    bench.run()
    assert bench.told(BudgetSpent) == [BudgetSpent(2, 100, BUDGET)]
    assert bench.said_to_have_ended  # or an aggregator that runs one job only would wait for more
    assert value_of(bench.path) == 2
    assert json.loads((bench.path / "checkpoint.json").read_text(encoding="utf-8"))["completed"]
    assert [line["epsilon"] for line in history(bench.path)] == [2.5, 3.5]
    assert [(f.epsilon, f.budget) for f in bench.told(RoundFinished)] == [
        (2.5, BUDGET),
        (3.5, BUDGET),
    ]


def test_a_job_that_ended_with_its_budget_opens_no_round_when_it_is_run_again(
    tmp_path: Path,
) -> None:
    bench = private_bench(tmp_path / "run")
    bench.ends = [stating(bench.release, 1, 2.5), SPENT]
    bench.run()
    again = private_bench(tmp_path / "run")
    again.status.released = again.status.last_round = 1
    again.run(replace(START, round=1, released=1, completed=True))
    assert again.steps == []


def test_another_refusal_of_a_round_ends_no_job_as_if_it_were_finished(tmp_path: Path) -> None:
    for private, reason in ((True, pb.REASON_COHORT_DIFFERENCE), (False, pb.REASON_BUDGET_SPENT)):
        bench = private_bench(tmp_path / str(private))
        bench.spec.aggregation = PRIVATE if private else Aggregation()
        bench.ends = [WrongState("not so", reason)]
        with pytest.raises(WrongState, match="not so"):
            bench.run()
        assert bench.told(BudgetSpent) == []


@pytest.mark.parametrize(
    ("rounds", "groups", "line"),
    [
        (100, (), "The budget, epsilon 8 of one owner (delta 1e-05), allows 9 of the 100 rounds\n"),
        (5, (), "The budget, epsilon 8 of one owner (delta 1e-05), allows 5 of the 5 rounds\n"),
        (100, (("a", "b"), ("c", "d")), "(delta 1e-05), allows each group 9 of the 100 rounds\n"),
    ],
)
def test_how_many_rounds_the_budget_allows_is_said_at_the_start(
    rounds: int,
    groups: tuple[tuple[str, ...], ...],
    line: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    spec = replace(JOB, aggregation=PRIVATE, rounds=rounds, groups=groups)
    show(JobStarted(spec, "agg:7443", floor=2, released=0))
    assert line in capsys.readouterr().out


def test_a_round_says_what_was_told_of_an_owner_and_of_how_much(
    capsys: pytest.CaptureFixture[str],
) -> None:
    finished = RoundFinished(3, 100, 3, 5, None, {}, 1.5, epsilon=4.0113, budget=BUDGET)
    show(finished)
    show(BudgetSpent(9, 100, BUDGET))
    assert capsys.readouterr().out == (
        "Round   3/100   5 owners   epsilon 4.01 of 8 (delta 1e-05), unit: one owner   1.50 s\n"
        "The budget is spent after 9 of 100 rounds: another would tell more of one owner than epsilon 8"
        " (delta 1e-05)\n"
    )
