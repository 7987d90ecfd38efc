"""What the aggregator allows of jobs and of rounds."""

from dataclasses import replace

import pytest

from aggregator_node.admission import (
    MAX_ABORTS,
    AdmissionPolicy,
    Opening,
    check_opening,
)
from aggregator_node.storage.rows import Progress
from cairn.errors import CairnError, InvalidMessage, LimitExceeded, WrongState
from cairn.model.schema import Schema, TensorSpec
from cairn.protocol.aggregation import Aggregation
from cairn.protocol.messages import JobSpec
from cairn.v1 import round_pb2 as pb

OWNERS = ("alice", "bob", "carol", "dora")
JOB = JobSpec(
    federation="clinics",
    name="tumours",
    task="tumours",
    settings={},
    owners=OWNERS,
    floor=2,
    rounds=5,
    weighting=pb.WEIGHTING_EQUAL,
    schema=Schema.of([TensorSpec("w", "F32", (2,))]),
    round_deadline_seconds=60,
    min_examples=1,
    max_examples=1000,
)
POLICY = AdmissionPolicy("clinics", frozenset(OWNERS), floor=3)
BASE, RELEASE = bytes(range(32)), bytes(range(32, 64))
FIRST = Opening(1, pb.PHASE_TRAIN, ("alice", "bob", "carol"), BASE)


def test_the_floor_is_the_larger_of_the_jobs_and_the_aggregators() -> None:
    assert POLICY.floor_of(JOB) == 3
    assert POLICY.floor_of(replace(JOB, floor=4)) == 4


def test_a_job_of_another_federation_is_refused_by_name() -> None:
    with pytest.raises(InvalidMessage, match=r"elsewhere.*clinics"):
        POLICY.check_job(replace(JOB, federation="elsewhere"))


def test_an_owner_outside_the_roster_is_refused_by_name() -> None:
    with pytest.raises(InvalidMessage, match="mallory"):
        POLICY.check_job(replace(JOB, owners=("alice", "bob", "mallory")))


def test_a_job_that_could_never_reach_the_floor_is_refused() -> None:
    with pytest.raises(InvalidMessage, match="2 owners, the floor is 3"):
        POLICY.check_job(replace(JOB, owners=("alice", "bob")))


@pytest.mark.parametrize("shapes", [((0,),), ((0, 3), (2, 0))])
def test_a_model_without_a_single_value_is_refused_by_name(
    shapes: tuple[tuple[int, ...], ...],
) -> None:
    tensors = [TensorSpec(f"t{n}", "F32", shape) for n, shape in enumerate(shapes)]
    with pytest.raises(InvalidMessage, match="no tensor of the model has an element"):
        POLICY.check_job(replace(JOB, schema=Schema.of(tensors)))


def test_a_job_with_a_group_below_the_aggregators_floor_is_refused() -> None:
    pairs = replace(JOB, groups=(("alice", "bob"), ("carol", "dora")))
    with pytest.raises(InvalidMessage, match=r"a group .* 2 owners, the floor is 3") as refusal:
        POLICY.check_job(pairs)
    assert refusal.value.reason == pb.REASON_COHORT_TOO_SMALL
    replace(POLICY, floor=2).check_job(pairs)


def test_a_cohort_is_within_one_group_of_its_job_whole_or_in_part() -> None:
    job = replace(
        JOB, groups=(("alice", "bob", "carol"), ("dora", "erin")), owners=(*OWNERS, "erin")
    )
    policy = AdmissionPolicy("clinics", job.owners, floor=2)
    for cohort in (("alice", "bob", "carol"), ("alice", "carol"), ("dora", "erin")):
        check_opening(policy, job, Progress(), replace(FIRST, cohort=cohort))
    for mixed in (("alice", "dora"), ("bob", "carol", "erin"), job.owners):
        with pytest.raises(InvalidMessage, match="more than one group") as refusal:
            check_opening(policy, job, Progress(), replace(FIRST, cohort=mixed))
        assert refusal.value.reason == pb.REASON_MIXED_GROUPS


def test_an_evaluation_keeps_to_the_groups_as_well() -> None:
    job = replace(JOB, groups=(("alice", "bob"), ("carol", "dora")))
    evaluation = Opening(1, pb.PHASE_EVALUATE, ("bob", "carol"), RELEASE)
    with pytest.raises(InvalidMessage, match="more than one group"):
        check_opening(replace(POLICY, floor=2), job, AFTER_ONE, evaluation)


def test_the_first_round_may_start_from_any_base() -> None:
    check_opening(POLICY, JOB, Progress(), FIRST)


@pytest.mark.parametrize(
    ("opening", "error", "words"),
    [
        (replace(FIRST, cohort=("alice", "bob")), InvalidMessage, "below the floor of 3"),
        (replace(FIRST, cohort=("alice", "bob", "mallory")), InvalidMessage, "mallory"),
        (replace(FIRST, round=2), WrongState, "out of turn"),
        (replace(FIRST, round=0), WrongState, "out of turn"),
        (replace(FIRST, phase=pb.PHASE_EVALUATE), WrongState, "cannot be evaluated"),
    ],
)
def test_a_first_round_is_refused_when(
    opening: Opening, error: type[CairnError], words: str
) -> None:
    with pytest.raises(error, match=words):
        check_opening(POLICY, JOB, Progress(), opening)


AFTER_ONE = Progress(opened=1, released=1, release_round=1, release_digest=RELEASE)


def test_the_next_round_starts_from_the_last_release() -> None:
    check_opening(POLICY, JOB, AFTER_ONE, replace(FIRST, round=2, base_digest=RELEASE))


def test_a_base_that_is_not_the_last_release_breaks_the_chain() -> None:
    with pytest.raises(WrongState, match="not the last release"):
        check_opening(POLICY, JOB, AFTER_ONE, replace(FIRST, round=2))


def test_a_burnt_round_number_is_never_opened_again() -> None:
    with pytest.raises(WrongState, match="next of tumours is 2"):
        check_opening(POLICY, JOB, Progress(opened=1), FIRST)


def test_no_round_is_opened_after_the_last_release_of_the_job() -> None:
    done = Progress(opened=5, released=5, release_round=5, release_digest=RELEASE)
    with pytest.raises(WrongState, match="all 5 rounds"):
        check_opening(POLICY, JOB, done, replace(FIRST, round=6, base_digest=RELEASE))


def test_the_evaluation_of_a_release_is_opened_once() -> None:
    evaluation = Opening(1, pb.PHASE_EVALUATE, FIRST.cohort, RELEASE)
    check_opening(POLICY, JOB, AFTER_ONE, evaluation)
    with pytest.raises(WrongState, match="opened before"):
        check_opening(POLICY, JOB, replace(AFTER_ONE, evaluated=1), evaluation)


def test_an_evaluation_of_anything_but_the_last_release_is_refused() -> None:
    with pytest.raises(WrongState, match="not the last release"):
        check_opening(POLICY, JOB, AFTER_ONE, Opening(1, pb.PHASE_EVALUATE, FIRST.cohort, BASE))


@pytest.mark.parametrize("aborts", [0, MAX_ABORTS - 1])
def test_a_job_goes_on_after_fewer_aborts_in_a_row_than_the_cap(aborts: int) -> None:
    check_opening(
        POLICY, JOB, Progress(opened=aborts, aborts=aborts), replace(FIRST, round=aborts + 1)
    )


def test_a_job_is_closed_by_as_many_aborts_of_its_coordinator_as_the_cap() -> None:
    tired = Progress(opened=MAX_ABORTS, aborts=MAX_ABORTS)
    with pytest.raises(
        WrongState, match="20 rounds of tumours were ended by its coordinator"
    ) as caught:
        check_opening(POLICY, JOB, tired, replace(FIRST, round=MAX_ABORTS + 1))
    assert caught.value.reason == pb.REASON_TOO_MANY_ABORTS


def test_an_owner_that_left_the_roster_cannot_be_in_a_cohort_of_a_job_that_lists_it() -> None:
    without = replace(POLICY, owners=frozenset(OWNERS) - {"bob"})
    with pytest.raises(InvalidMessage, match="bob") as caught:
        check_opening(without, JOB, Progress(), FIRST)
    assert caught.value.reason == pb.REASON_UNKNOWN_OWNER


def test_a_model_beyond_the_limit_is_refused_by_its_size() -> None:
    assert JOB.schema.total_bytes == 8
    replace(POLICY, model_bytes=8).check_job(JOB)
    with pytest.raises(LimitExceeded, match="8 bytes, this aggregator takes 7"):
        replace(POLICY, model_bytes=7).check_job(JOB)


@pytest.mark.parametrize(
    ("examples", "ratio", "passes"),
    [((1, 1000), 1000, True), ((1, 1001), 1000, False), ((3, 10), 3, False), ((3, 9), 3, True)],
)
def test_an_update_may_weigh_so_many_times_another_and_no_more(
    examples: tuple[int, int], ratio: int, *, passes: bool
) -> None:
    least, most = examples
    job = replace(JOB, weighting=pb.WEIGHTING_EXAMPLES, min_examples=least, max_examples=most)
    policy = replace(POLICY, weight_ratio=ratio)
    policy.check_job(replace(job, weighting=pb.WEIGHTING_EQUAL))
    if passes:
        policy.check_job(job)
        return
    with pytest.raises(InvalidMessage, match="narrow examples") as caught:
        policy.check_job(job)
    assert caught.value.reason == pb.REASON_EXAMPLES_REFUSED


KRUM = Aggregation(rule=pb.RULE_MULTI_KRUM, rule_numbers={"byzantine": 0, "select": 3})


def test_a_rule_or_an_optimizer_that_the_file_does_not_allow_is_refused_by_name() -> None:
    job = replace(JOB, aggregation=KRUM)
    POLICY.check_job(job)
    with pytest.raises(InvalidMessage, match=r"multi_krum; .* allows mean \(rules\)") as refusal:
        replace(POLICY, rules=frozenset({pb.RULE_MEAN})).check_job(job)
    assert refusal.value.reason == pb.REASON_RULE_REFUSED
    step = Aggregation(optimizer=pb.OPTIMIZER_SGD, optimizer_numbers={"lr": 1, "momentum": 0})
    with pytest.raises(InvalidMessage, match=r"sgd; .* allows none \(optimizers\)"):
        replace(POLICY, optimizers=frozenset({pb.OPTIMIZER_NONE})).check_job(
            replace(JOB, aggregation=step)
        )


def test_a_job_whose_rule_could_never_average_over_the_floor_is_refused() -> None:
    textbook = replace(KRUM, rule_numbers={"byzantine": 0, "select": 2})
    with pytest.raises(InvalidMessage, match="an average over 2 at least; the floor is 3"):
        POLICY.check_job(replace(JOB, aggregation=textbook))
    replace(POLICY, floor=2).check_job(replace(JOB, aggregation=textbook))


def test_a_cohort_of_which_the_rule_would_average_over_too_few_is_refused() -> None:
    trimmed = Aggregation(rule=pb.RULE_TRIMMED_MEAN, rule_numbers={"trim": 0.34})
    job = replace(JOB, aggregation=trimmed)
    with pytest.raises(InvalidMessage, match="an average over 1 at least") as refusal:
        check_opening(POLICY, job, Progress(), FIRST)
    assert refusal.value.reason == pb.REASON_RULE_REFUSED


def private(**numbers: float) -> JobSpec:
    numbers = {"norm": 1.0, "noise": 2.0, "epsilon": 8.0, "delta": 1e-5, **numbers}
    return replace(JOB, aggregation=Aggregation(rule=pb.RULE_PRIVATE_MEAN, rule_numbers=numbers))


def test_a_job_may_tell_of_an_owner_as_much_as_the_file_says_and_no_more() -> None:
    policy = replace(POLICY, max_epsilon=8.0)
    policy.check_job(private())
    policy.check_job(JOB)  # what has no noise has no epsilon
    with pytest.raises(
        InvalidMessage, match=r"epsilon 8\.5 .* allows 8 \(max_epsilon\)"
    ) as refusal:
        policy.check_job(private(epsilon=8.5))
    assert refusal.value.reason == pb.REASON_RULE_REFUSED
    POLICY.check_job(private(epsilon=8.5))


def test_a_job_whose_first_round_would_spend_more_than_its_budget_is_refused() -> None:
    """At noise 2 and delta 1e-5 one release tells epsilon 2.166, by the accountants of others."""
    POLICY.check_job(private(epsilon=2.17))
    with pytest.raises(
        InvalidMessage, match=r"no round: .* 2\.166 .* raise noise or eps"
    ) as refusal:
        POLICY.check_job(private(epsilon=2.16))
    assert refusal.value.reason == pb.REASON_BUDGET_SPENT


def test_a_private_job_has_no_evaluation() -> None:
    evaluation = Opening(1, pb.PHASE_EVALUATE, FIRST.cohort, RELEASE)
    check_opening(POLICY, JOB, AFTER_ONE, evaluation)
    with pytest.raises(InvalidMessage, match="no noise is added to metrics") as refusal:
        check_opening(POLICY, private(), AFTER_ONE, evaluation)
    assert refusal.value.reason == pb.REASON_RULE_REFUSED
