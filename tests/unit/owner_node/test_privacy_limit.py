"""What an owner lets noisy releases tell of it: over all jobs of a task, whatever they are called."""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest

from cairn.protocol.aggregation import Aggregation
from cairn.v1 import round_pb2 as pb
from owner_node.invitation import Declined, Invited, JobHistory
from owner_node.privacy_limit import PrivacyLimit
from owner_node.records.history import LedgerHistory
from tests.unit.owner_node.test_policy import DIGEST, JOB, MANIFEST, POLICY, RULES, check, reason_of

# Nine releases of noise 2 tell epsilon 7.59 at delta 1e-5, and ten 8.08, by the accountants of others.
NUMBERS = {"norm": 1.0, "noise": 2.0, "epsilon": 8.0, "delta": 1e-5}
LIMITED = replace(
    POLICY,
    tasks={
        "tumours": replace(
            RULES,
            privacy_limit=PrivacyLimit(epsilon=8.0, delta=1e-5),
            rules=frozenset({pb.RULE_MEAN, pb.RULE_PRIVATE_MEAN}),
        )
    },
)


def private(job: str = "tumours", **numbers: float) -> dict[str, Any]:
    """A round and its job, as `check` takes them."""
    rule = Aggregation(rule=pb.RULE_PRIVATE_MEAN, rule_numbers={**NUMBERS, **numbers})
    return {
        "manifest": replace(MANIFEST, job=job, aggregation=rule),
        "job": replace(JOB, name=job, aggregation=rule),
        "policy": LIMITED,
    }


def sent(
    number: int, *, rule: str = "private_mean", task: str = "tumours", noise: float = 2.0
) -> Any:
    """An update of a round; each is one of a job of its own."""
    facts = {
        "job": f"job-{number}",
        "round": 1,
        "phase": "train",
        "manifest_digest": digest(number),
        "task": task,
        "payload_digest": "ab" * 32,
        "examples": 1,
        "metrics": {},
        "rule": rule,
        "rule_numbers": {"noise": noise, "norm": 1.0} if rule == "private_mean" else {},
    }
    return "sent", facts


def digest(number: int) -> str:
    return f"{number:064x}"


def released(number: int, **facts: object) -> Any:
    told = {"job": f"job-{number}", "round": 1, "release_digest": "cd" * 32, **facts}
    return "released", {"manifest_digest": digest(number), **told}


def known(entries: Iterable[tuple[str, dict[str, Any]]], invited: bytes = DIGEST) -> JobHistory:
    history = LedgerHistory()
    for kind, facts in entries:
        history.note(kind, facts)
    return history.known(Invited(MANIFEST, invited, JOB))


def test_only_a_training_with_noise_is_taken_part_in() -> None:
    check(**private())
    assert reason_of(policy=LIMITED) == "RULE_REFUSED"
    evaluation = private()
    evaluation["manifest"] = replace(evaluation["manifest"], phase=pb.PHASE_EVALUATE)
    assert reason_of(**evaluation) == "RULE_REFUSED"
    check()  # without the limit


@pytest.mark.parametrize("numbers", [{"epsilon": 8.1}, {"delta": 1.1e-5}], ids=str)
def test_a_job_that_may_tell_more_than_the_file_allows_is_declined(numbers: Any) -> None:
    assert reason_of(**private(**numbers)) == "RULE_REFUSED"
    check(**private(epsilon=1.0, delta=1e-7))


def test_all_releases_of_the_task_count_whatever_their_jobs_are_called() -> None:
    eight = [entry for n in range(8) for entry in (sent(n), released(n, counted=True))]
    check(**private("new-name"), known=known(eight))
    nine = [*eight, sent(8), released(8, counted=True)]
    assert reason_of(**private("new-name"), known=known(nine)) == "BUDGET_SPENT"
    with pytest.raises(Declined, match=r"would tell epsilon 8\.078 .* allows 8 \(max_epsilon\)"):
        check(**private("another-name"), known=known(nine))


def test_releases_of_unlike_noise_add_up() -> None:
    """One of noise 1 tells as much as four of noise 2, and one of 2/3 as nine."""
    check(**private(), known=known([sent(1, noise=1.0), *(sent(n) for n in range(2, 6))]))
    loud = known([sent(1, noise=2 / 3)])
    assert reason_of(**private(), known=loud) == "BUDGET_SPENT"
    assert reason_of(**private(noise=0.6), known=known([])) == "BUDGET_SPENT"


def test_an_update_counts_before_its_round_is_known_to_be_released() -> None:
    assert reason_of(**private(), known=known(sent(n) for n in range(9))) == "BUDGET_SPENT"


@pytest.mark.parametrize(
    "end",
    [
        ("no release", {"manifest_digest": digest(0), "why": "no", "reason": "MAGNITUDE_REFUSED"}),
        released(0, counted=False, reason="DEADLINE"),
    ],
    ids=lambda end: end[0],
)
def test_a_round_that_did_not_count_this_owner_is_taken_back(end: Any) -> None:
    check(**private(), known=known([*(sent(n) for n in range(9)), end]))


@pytest.mark.parametrize(
    "end",
    [
        released(0, counted=False, why="the receipt's commitment is missing"),
        ("no release", {"manifest_digest": digest(0), "why": "the round ended without a release"}),
    ],
    ids=lambda end: end[0],
)
def test_a_round_that_may_have_told_of_this_owner_is_not_taken_back(end: Any) -> None:
    """That a noised result left the range of its type is told by a round without a release."""
    entries = [*(sent(n) for n in range(9)), end]
    assert reason_of(**private(), known=known(entries)) == "BUDGET_SPENT"


def test_the_round_that_is_invited_to_again_counts_once() -> None:
    entries = [sent(n) for n in range(9)]
    check(**private(), known=known(entries, invited=bytes.fromhex(digest(3))))


def test_other_tasks_and_rounds_without_noise_count_nothing() -> None:
    entries = [sent(n) for n in range(8)]
    entries += [sent(20, task="other"), sent(21, rule="mean")]
    check(**private(), known=known(entries))
