"""The owner's account of private training: what is recorded before it, and when a round is declined."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cairn.ledger.chain import Entry
from cairn.protocol.aggregation import Aggregation
from cairn.protocol.messages import digest_of, job_spec_to_bytes
from cairn.runtime.clock import Clock
from cairn.tasks.accounting import PrivateSteps, epsilon_of
from cairn.tasks.settings import PrivateSettings
from cairn.v1 import round_pb2 as pb
from owner_node import events
from owner_node.event_log import _fields
from owner_node.invitation import JobHistory
from owner_node.records.history import LedgerHistory
from owner_node.records.ledger import OwnerLedger
from owner_node.records.private_steps import PrivateRecord
from tests.unit.owner_node.round_bench import Bench, invitation
from tests.unit.owner_node.test_policy import JOB, MANIFEST, POLICY, RULES, check, reason_of

LOOP = {"sample_rate": 0.25, "steps": 4}
STEPS = PrivateSteps(0.25, 1.0, 4)
DELTA = 1e-5
ONE, TWO, THREE = (epsilon_of([STEPS] * n, DELTA) for n in (1, 2, 3))
BUDGET = PrivateSettings(epsilon=(TWO + THREE) / 2, delta=DELTA, noise=1.0, clip=0.5)

MakeBench = Callable[..., Bench]


@pytest.fixture
def private_bench(tmp_path: Path) -> Iterator[MakeBench]:
    """An owner whose file allows two rounds of one loop, and whose task asks for these loops in each."""
    made: list[Bench] = []

    def make(*loops: Any, budget: PrivateSettings = BUDGET) -> Bench:
        made.append(Bench(tmp_path / str(len(made)), private=budget))
        made[-1].task.loops = list(loops)
        return made[-1]

    yield make
    for bench in made:
        bench.state.close()


def take_part(bench: Bench, number: int) -> None:
    bench.rounds.take_part(invitation(replace(MANIFEST, round=number)))


def spent(bench: Bench) -> list[Entry]:
    return [entry for entry in bench.entries() if entry.kind == "spent"]


def test_a_loop_is_recorded_before_its_first_step_with_the_owners_own_noise(
    private_bench: MakeBench,
) -> None:
    bench = private_bench(LOOP | {"noise": 99.0, "epsilon": 0.0})
    bench.rounds.take_part(invitation())
    assert bench.kinds() == ["joined", "spent", "sent", "receipt"]
    facts = bench.facts("spent")
    assert facts["epsilon"] == pytest.approx(ONE)
    told = {key: facts[key] for key in ("sample_rate", "steps", "noise", "clip", "delta", "loop")}
    assert told == {**LOOP, "noise": 1.0, "clip": 0.5, "delta": DELTA, "loop": 1}
    assert (facts["task"], facts["round"], facts["epsilon_allowed"]) == (
        "tumours",
        4,
        BUDGET.epsilon,
    )
    (work,) = bench.task.works
    assert work.private is not None
    assert (work.private.noise, work.private.clip) == (1.0, 0.5)


def test_the_log_says_how_much_of_epsilon_is_spent(private_bench: MakeBench) -> None:
    bench = private_bench(LOOP)
    bench.rounds.take_part(invitation())
    (event,) = [event for event in bench.events if isinstance(event, events.PrivacySpent)]
    assert _fields(event)["epsilon"] == f"{ONE:.3g} of {BUDGET.epsilon:g}"


def test_after_as_many_rounds_as_the_budget_allows_the_next_is_declined_before_it_is_joined(
    private_bench: MakeBench,
) -> None:
    bench = private_bench(LOOP)
    for number in (4, 5, 6):
        take_part(bench, number)
    answers = [answer for answer in bench.stub.log if answer != "asked for the statement"]
    assert answers == ["joined", "submitted"] * 2 + ["declined REASON_BUDGET_SPENT"]
    assert [entry.facts["epsilon"] for entry in spent(bench)] == pytest.approx([ONE, TWO])
    why = bench.facts("declined")["why"]
    assert f"would make epsilon {THREE:.3g} for the task tumours" in why


def test_a_training_that_asks_for_more_than_is_left_is_declined_and_costs_nothing(
    private_bench: MakeBench,
) -> None:
    """Of a job that the ledger does not know, nobody can say before what a round asks for."""
    bench = private_bench({"sample_rate": 0.25, "steps": 12})
    bench.rounds.take_part(invitation())
    assert bench.stub.log == ["joined", "declined REASON_BUDGET_SPENT"]
    assert spent(bench) == []
    assert "12 more steps of the task tumours would make" in bench.facts("declined")["why"]
    bench.task.loops = [LOOP]
    take_part(bench, 5)
    assert bench.stub.log[-2:] == ["joined", "submitted"]


def test_a_second_loop_beyond_the_budget_leaves_nothing_and_the_first_counts(
    private_bench: MakeBench,
) -> None:
    bench = private_bench(LOOP, LOOP, LOOP)
    bench.rounds.take_part(invitation())
    assert bench.stub.log == ["joined", "declined REASON_BUDGET_SPENT"]
    assert [entry.facts["loop"] for entry in spent(bench)] == [1, 2]


def test_no_task_goes_on_after_a_refusal_by_ignoring_it(private_bench: MakeBench) -> None:
    bench = private_bench({"sample_rate": 1.0, "steps": 1000})
    run = bench.task.run

    def ignores(work: Any, is_over: Any = lambda: False) -> Any:
        assert work.private.spend(bench.task.loops.pop())
        assert work.private.spend(LOOP)  # a smaller one, after the first was refused
        return run(work, is_over)

    bench.task.run = ignores  # type: ignore[method-assign]  # a task that catches what it is told
    bench.rounds.take_part(invitation())
    assert bench.stub.log == ["joined", "declined REASON_BUDGET_SPENT"]
    assert spent(bench) == []


def test_a_training_that_asks_for_nothing_leaves_nothing(private_bench: MakeBench) -> None:
    bench = private_bench()
    bench.rounds.take_part(invitation())
    assert bench.stub.log == ["joined", "declined REASON_NOT_COUNTED"]
    assert "trained without cairn.private" in bench.facts("declined")["why"]
    assert bench.facts("declined")["reason"] == "TASK_FAILED"


@pytest.mark.parametrize(
    "loop",
    [
        None,
        [],
        {},
        {"sample_rate": 0.25},
        {"sample_rate": "all", "steps": 4},
        {"sample_rate": 0.0, "steps": 4},
        {"sample_rate": float("nan"), "steps": 4},
        {"sample_rate": 0.25, "steps": -4},
        {"sample_rate": 0.25, "steps": 4.0},
        {"sample_rate": 0.25, "steps": None},
    ],
    ids=str,
)
def test_a_question_that_is_none_fails_the_round(private_bench: MakeBench, loop: Any) -> None:
    bench = private_bench(loop)
    bench.rounds.take_part(invitation())
    assert bench.stub.log == ["joined", "declined REASON_NOT_COUNTED"]
    assert spent(bench) == []


def test_where_the_ledger_cannot_be_written_no_step_is_allowed(private_bench: MakeBench) -> None:
    bench = private_bench(LOOP)
    bench.task.before = lambda: bench.state.db.execute("PRAGMA query_only = ON")
    bench.rounds.take_part(invitation())
    assert bench.stub.log == ["joined", "declined REASON_NOT_COUNTED"]
    assert bench.kinds() == ["joined"]


def test_a_round_that_is_trained_again_counts_again_and_a_restart_forgets_nothing(
    private_bench: MakeBench,
) -> None:
    bench = private_bench(LOOP)
    bench.ledger.record = failing_at("sent", bench.ledger.record)  # type: ignore[method-assign]  # the node dies here
    take_part(bench, 4)
    del bench.ledger.record
    take_part(bench, 4)  # the same round, once more
    assert [entry.facts["epsilon"] for entry in spent(bench)] == pytest.approx([ONE, TWO])
    again = OwnerLedger(bench.state, Clock())
    assert again.past.private.taken("tumours") == (STEPS, STEPS)
    assert again.past.private.of_last_round("tumours", "tumours") == (STEPS,)


def failing_at(kind: str, record: Callable[..., None]) -> Callable[..., None]:
    def fails(of: str, facts: dict[str, object]) -> None:
        if of == kind:
            raise RuntimeError
        record(of, facts)

    return fails


def test_what_was_trained_and_recorded_as_sent_may_leave_again_with_the_last_of_the_budget(
    private_bench: MakeBench,
) -> None:
    bench = private_bench(LOOP, budget=BUDGET.model_copy(update={"epsilon": (ONE + TWO) / 2}))
    bench.stub.submit_error = RuntimeError("the node dies here")
    bench.rounds.take_part(invitation())
    assert bench.kinds()[:3] == ["joined", "spent", "sent"]
    bench.stub.submit_error = None
    bench.rounds.take_part(invitation())
    assert bench.stub.log[-2:] == ["joined", "submitted"]
    assert len(spent(bench)) == 1


PRIVATE = replace(POLICY, tasks={"tumours": replace(RULES, private=BUDGET)})


def test_what_would_leave_without_noise_is_declined_before_any_data_is_opened() -> None:
    check(policy=PRIVATE)
    gradients = Aggregation(
        pb.CONTENT_GRADIENTS,
        optimizer=pb.OPTIMIZER_SGD,
        optimizer_numbers={"lr": 0.1, "momentum": 0},
    )
    for job, manifest in (
        (
            replace(JOB, weighting=pb.WEIGHTING_EXAMPLES),
            replace(MANIFEST, weighting=pb.WEIGHTING_EXAMPLES),
        ),
        (replace(JOB, aggregation=gradients), replace(MANIFEST, aggregation=gradients)),
        (JOB, replace(MANIFEST, phase=pb.PHASE_EVALUATE)),
    ):
        digested = replace(manifest, job_digest=digest_of(job_spec_to_bytes(job)))
        check(digested, job)
        assert reason_of(digested, job, policy=PRIVATE) == "JOB_REFUSED"


@pytest.mark.parametrize(
    ("before", "following", "fits"),
    [(0, 2, True), (1, 1, True), (2, 0, True), (2, 1, False), (3, 0, False), (0, 3, False)],
)
def test_a_round_is_taken_while_what_was_spent_and_another_of_its_kind_fit_the_budget(
    before: int,
    following: int,
    fits: bool,  # noqa: FBT001 - a parameter of the test
) -> None:
    known = JobHistory(private=(STEPS,) * before, next_private=(STEPS,) * following)
    if fits:
        check(known=known, policy=PRIVATE)
    else:
        assert reason_of(known=known, policy=PRIVATE) == "BUDGET_SPENT"


def entry(job: str, loop: int, steps: int) -> dict[str, Any]:
    return {**LOOP, "steps": steps, "noise": 1.0, "task": "t", "job": job, "loop": loop}


def test_all_jobs_of_a_task_draw_on_one_budget_and_no_reset_gives_it_back() -> None:
    record = PrivateRecord()
    for facts in (entry("a", 1, 4), entry("a", 2, 5), entry("b", 1, 6), entry("b", 1, 7)):
        record.note("spent", facts)
    record.note("reset", {"task": "t", "failures": 0})
    assert [each.steps for each in record.taken("t")] == [4, 5, 6, 7]
    assert [each.steps for each in record.of_last_round("t", "a")] == [4, 5]
    assert [each.steps for each in record.of_last_round("t", "b")] == [7]
    assert (record.taken("other"), record.of_last_round("t", "c")) == ((), ())


def test_an_entry_that_cannot_be_understood_is_found_as_any_is() -> None:
    with pytest.raises(ValueError, match="sample rate"):
        LedgerHistory().note("spent", entry("a", 1, 4) | {"sample_rate": 2.0})
