"""What the coordinator says of owners that were not counted, and of the best release."""

from dataclasses import replace
from pathlib import Path

import pytest

from cairn.protocol.aggregation import Aggregation
from cairn.v1 import round_pb2 as pb
from coordinator.best_release import BestSoFar
from coordinator.console import show
from coordinator.events import (
    BestMetricMissing,
    BestModelKept,
    ChoiceDoubted,
    Event,
    JobStarted,
    OwnerNotCounted,
    OwnersAwaited,
    RoundFinished,
    StoppedEarly,
)
from coordinator.needed_owners import Needed
from tests.unit.owner_node.test_policy import JOB

BEST = BestSoFar("f1", "higher", round=7, value=0.8125, mark=0.75, waited=5)
FINISHED = RoundFinished(
    7, 50, 7, contributors=3, group=None, metrics={"f1": 0.8125}, seconds=1.5, is_best=True
)


@pytest.mark.parametrize(
    ("reason", "line"),
    [
        (
            pb.REASON_NOT_COUNTED,
            (
                "Round 2: bob was not counted (NOT_COUNTED): the owner's task failed or its update was refused;"
                " only that owner is told why\n"
            ),
        ),
        (
            pb.REASON_FAILURES_SPENT,
            (
                "Round 2: bob was not counted (FAILURES_SPENT): the owner was not counted as often as its file allows: its"
                " operator has to look into that and run `cairn reset`\n"
            ),
        ),
        (pb.REASON_LEASE_EXPIRED, "Round 2: bob was not counted (LEASE_EXPIRED)\n"),
    ],
)
def test_a_word_that_tells_little_is_explained(
    reason: "pb.Reason", line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    show(OwnerNotCounted(2, "bob", reason))
    assert capsys.readouterr().out == line


@pytest.mark.parametrize(
    ("event", "line"),
    [
        (
            OwnersAwaited(
                "abcdefg", "abcdef", Needed(7, "multi_krum"), of_one_group=False, seconds=60
            ),
            "Waiting for g, at most 60 s: 6 owners of at least 7 so far (multi_krum needs 7)\n",
        ),
        (ChoiceDoubted("rule trimmed_mean: why"), "Warning: rule trimmed_mean: why\n"),
        (FINISHED, "Round  7/50   3 owners   f1 0.8125   1.50 s   best so far\n"),
        (
            StoppedEarly(12, 50, 0.01, BEST),
            (
                "Stopped early, after 12 of 50 rounds: in the last 5 rounds, f1 was not higher than 0.7500 by 0.01 or"
                " more\n"
            ),
        ),
        (
            StoppedEarly(12, 50, 0, BEST),
            "Stopped early, after 12 of 50 rounds: in the last 5 rounds, f1 was not higher than 0.7500\n",
        ),
        (
            BestModelKept(Path("run/best.safetensors"), BEST),
            "Best model: run/best.safetensors (round 7, f1 0.8125)\n",
        ),
        (
            BestMetricMissing(2, "f1", ["acc", "loss"]),
            (
                "Round 2: its evaluation has no f1, only acc, loss: this release cannot be the best. A metric is there if"
                " every owner's task reports it and every owner's file lists it\n"
            ),
        ),
    ],
)
def test_what_is_said_of_the_best_release_is_its_average_and_its_round(
    event: Event, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    show(event)
    assert capsys.readouterr().out == line


def test_what_becomes_of_updates_is_said_where_it_is_not_the_plain_mean(
    capsys: pytest.CaptureFixture[str],
) -> None:
    krum = Aggregation(rule=pb.RULE_MULTI_KRUM, rule_numbers={"byzantine": 1, "select": 3})
    show(JobStarted(replace(JOB, aggregation=krum), "agg:7443", floor=3, released=0))
    assert "updates: multi_krum (byzantine = 1, select = 3)\n" in capsys.readouterr().out
    show(JobStarted(JOB, "agg:7443", floor=3, released=0))
    assert capsys.readouterr().out.count("\n") == 1
