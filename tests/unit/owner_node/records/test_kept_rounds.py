"""Which round's kept tensors an owner goes on with, as its ledger says."""

from typing import Any

import pytest

from owner_node.records.kept_rounds import MOST_JOBS, KeptRounds

ONE, TWO, THREE = (bytes([n]) * 32 for n in (1, 2, 3))


def sent(digest: bytes, job: str = "job", phase: str = "train") -> tuple[str, dict[str, Any]]:
    facts = {"manifest_digest": digest.hex(), "task": "task", "job": job, "phase": phase}
    return "sent", facts


def ended(digest: bytes, *, counted: bool) -> tuple[str, dict[str, Any]]:
    return "released", {"manifest_digest": digest.hex(), "counted": counted}


def aborted(digest: bytes) -> tuple[str, dict[str, Any]]:
    return "no release", {"manifest_digest": digest.hex(), "why": "it was aborted"}


def told(*entries: tuple[str, dict[str, Any]]) -> KeptRounds:
    rounds = KeptRounds()
    for kind, facts in entries:
        rounds.note(kind, facts)
    return rounds


def test_a_round_counts_from_its_release_on_and_not_when_its_update_is_sent() -> None:
    entries = [sent(ONE)]
    assert told(*entries).current("task", "job") is None
    entries.append(ended(ONE, counted=True))
    assert told(*entries).current("task", "job") == ONE
    entries.append(sent(TWO))
    rounds = told(*entries)
    assert rounds.current("task", "job") == ONE
    assert rounds.all() == rounds.of_task("task") == {ONE, TWO}
    entries.append(ended(TWO, counted=True))
    assert told(*entries).all() == {TWO}


@pytest.mark.parametrize("end", [ended(TWO, counted=False), aborted(TWO)])
def test_a_round_that_did_not_count_this_owner_leaves_what_it_had_kept_before(
    end: tuple[str, dict[str, Any]],
) -> None:
    rounds = told(sent(ONE), ended(ONE, counted=True), sent(TWO), end)
    assert rounds.current("task", "job") == ONE
    assert rounds.all() == {ONE}


def test_an_evaluation_keeps_nothing() -> None:
    evaluated = (sent(TWO, phase="evaluate"), ended(TWO, counted=True))
    rounds = told(sent(ONE), ended(ONE, counted=True), *evaluated)
    assert rounds.all() == {ONE}


def test_statistics_keep_nothing() -> None:
    kind, facts = sent(TWO, job="figures")
    counted = (kind, facts | {"columns": ["age"]}), ended(TWO, counted=True)
    rounds = told(sent(ONE), ended(ONE, counted=True), *counted)
    assert rounds.all() == {ONE}


def test_the_end_of_an_older_round_that_comes_late_changes_nothing() -> None:
    rounds = told(sent(ONE), sent(TWO), ended(TWO, counted=True), ended(ONE, counted=True))
    assert rounds.current("task", "job") == TWO
    assert rounds.all() == {TWO}


def test_jobs_and_tasks_do_not_share_what_they_keep() -> None:
    rounds = told(sent(ONE), ended(ONE, counted=True), sent(TWO, "new"), ended(TWO, counted=True))
    assert (rounds.current("task", "job"), rounds.current("task", "new")) == (ONE, TWO)
    assert rounds.current("other", "job") is None
    assert rounds.of_task("other") == set()


def test_however_many_jobs_there_are_only_the_last_of_a_task_are_remembered() -> None:
    rounds = KeptRounds()
    digests = [n.to_bytes(32, "big") for n in range(1, MOST_JOBS + 4)]
    for number, digest in enumerate(digests):
        for kind, facts in (sent(digest, f"job-{number}"), ended(digest, counted=True)):
            rounds.note(kind, facts)
    assert rounds.all() == {*digests[-MOST_JOBS:]}
    for number, digest in enumerate(digests):
        rounds.note(*sent(digest[::-1], f"later-{number}"))
    assert len(rounds.all()) == 2 * MOST_JOBS
