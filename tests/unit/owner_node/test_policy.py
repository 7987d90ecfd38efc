"""What an owner allows, decided before any data is opened."""

from dataclasses import replace

import pytest

from cairn.errors import InvalidMessage
from cairn.model.schema import Schema, TensorSpec
from cairn.protocol.aggregation import Aggregation
from cairn.protocol.messages import JobSpec, Manifest, digest_of, job_spec_to_bytes
from cairn.protocol.words import ENCODINGS
from cairn.tasks.settings import TaskSettings
from cairn.v1 import round_pb2 as pb
from owner_node.invitation import Declined, Invited, JobHistory, LastRound
from owner_node.policy import Policy
from owner_node.task_rules import TaskRules

OWNERS = ("alice", "bob", "carol")
COHORT = (*OWNERS, "dora", "erin", "frank", "grace", "heidi", "ivan", "judy", "ken", "lea")
LAST_RELEASE = b"r" * 32
JOB = JobSpec(
    federation="clinics",
    name="tumours",
    task="tumours",
    settings={"lr": 0.1},
    owners=OWNERS,
    floor=3,
    rounds=5,
    weighting=pb.WEIGHTING_EQUAL,
    schema=Schema.of([TensorSpec("w", "F32", (2,))]),
    round_deadline_seconds=60,
    min_examples=1,
    max_examples=100,
)
MANIFEST = Manifest(
    federation="clinics",
    job="tumours",
    job_digest=digest_of(job_spec_to_bytes(JOB)),
    round=4,
    phase=pb.PHASE_TRAIN,
    cohort=OWNERS,
    base_digest=LAST_RELEASE,
    previous_release_digest=LAST_RELEASE,
    weighting=pb.WEIGHTING_EQUAL,
    floor=3,
    deadline_unix_ms=1_700_000_000_000,
    lease_seconds=15,
    nonce=bytes(32),
    ledger_head=bytes(32),
    ledger_number=7,
)
RULES = TaskRules({"lr": (0.01, 0.5)})
POLICY = Policy("clinics", "bob", floor=3, tasks={"tumours": RULES})
DIGEST = b"m" * 32
NOTHING = JobHistory()


def check(
    manifest: Manifest = MANIFEST,
    job: JobSpec = JOB,
    known: JobHistory = NOTHING,
    policy: Policy = POLICY,
) -> None:
    policy.check(Invited(manifest, DIGEST, job), known)


def reason_of(
    manifest: Manifest = MANIFEST,
    job: JobSpec = JOB,
    known: JobHistory = NOTHING,
    policy: Policy = POLICY,
) -> str:
    with pytest.raises(Declined) as decline:
        check(manifest, job, known, policy)
    return pb.Reason.Name(decline.value.reason).removeprefix("REASON_")


def test_an_invitation_within_the_owners_rules_is_taken() -> None:
    check()


@pytest.mark.parametrize(
    ("job", "reason"),
    [
        (replace(JOB, task="other"), "UNKNOWN_TASK"),
        (replace(JOB, settings={"lr": 0.6}), "SETTING_REFUSED"),
        (replace(JOB, settings={"lr": 0.001}), "SETTING_REFUSED"),
        (replace(JOB, settings={"lr": float("nan")}), "SETTING_REFUSED"),
        (replace(JOB, settings={"lr": 0.1, "steps": 1}), "SETTING_REFUSED"),
        (replace(JOB, settings={}), "SETTING_REFUSED"),
    ],
)
def test_a_job_outside_the_owners_rules_is_declined(job: JobSpec, reason: str) -> None:
    assert reason_of(job=job) == reason


def test_a_setting_that_the_job_leaves_out_is_named_before_the_task_fails_of_it() -> None:
    with pytest.raises(Declined, match=r"the job does not set lr, .*tasks\.\w+\.settings"):
        check(job=replace(JOB, settings={}))


@pytest.mark.parametrize("value", [0.01, 0.1, 0.5])
def test_the_ends_of_a_range_are_within_it(value: float) -> None:
    check(job=replace(JOB, settings={"lr": value}))


def test_a_floor_below_the_owners_own_is_declined() -> None:
    assert reason_of(replace(MANIFEST, floor=2)) == "FLOOR_TOO_LOW"


def test_a_cohort_smaller_than_its_own_floor_is_declined() -> None:
    assert reason_of(replace(MANIFEST, cohort=("alice", "bob"))) == "FLOOR_TOO_LOW"


def test_a_larger_share_of_the_weight_than_the_owner_allows_is_declined() -> None:
    careful = replace(POLICY, largest_share=0.35)  # and three count for a third each
    assert reason_of(replace(MANIFEST, largest_share=0.4), policy=careful) == "SETTING_REFUSED"
    for share in (0.35, 0.2):
        check(replace(MANIFEST, largest_share=share), policy=careful)
    check(replace(MANIFEST, largest_share=0.5))


def test_a_share_that_so_few_owners_as_the_floor_cannot_keep_is_declined() -> None:
    careful = replace(POLICY, largest_share=0.3)
    assert reason_of(replace(MANIFEST, largest_share=0.3), policy=careful) == "SETTING_REFUSED"


FIVE = ("alice", "bob", "carol", "sybil-1", "sybil-2")


@pytest.mark.parametrize(
    ("floor", "trusted", "reason"),
    [
        (3, None, None),
        (5, OWNERS, None),  # if all but five drop out, three of these are trusted
        (4, OWNERS, "UNTRUSTED_COHORT"),
        (3, OWNERS, "UNTRUSTED_COHORT"),
        (4, ("alice", "bob", "carol", "sybil-1"), None),
        (3, FIVE, None),
        (5, (), "UNTRUSTED_COHORT"),
    ],
)
def test_every_average_must_be_over_enough_owners_that_this_one_trusts(
    floor: int, trusted: tuple[str, ...] | None, reason: str | None
) -> None:
    policy = replace(POLICY, trusted=None if trusted is None else frozenset({*trusted, "bob"}))
    manifest = replace(MANIFEST, cohort=FIVE, floor=floor)
    if reason is None:
        check(manifest, policy=policy)
    else:
        assert reason_of(manifest, policy=policy) == reason


@pytest.mark.parametrize(
    "last",
    [
        LastRound(5, pb.PHASE_TRAIN, b"x" * 32),
        LastRound(4, pb.PHASE_EVALUATE, b"x" * 32),
        LastRound(4, pb.PHASE_TRAIN, b"x" * 32),  # the same round once more, opened anew
    ],
)
def test_a_round_that_is_not_newer_than_the_last_is_declined(last: LastRound) -> None:
    assert reason_of(known=JobHistory(last=last)) == "STALE_ROUND"


@pytest.mark.parametrize(
    "last",
    [
        LastRound(4, pb.PHASE_TRAIN, DIGEST),
        LastRound(3, pb.PHASE_EVALUATE, b"x" * 32),
        LastRound(3, pb.PHASE_TRAIN, b"x" * 32),
    ],
)
def test_the_same_manifest_again_and_a_newer_round_are_taken(last: LastRound) -> None:
    check(known=JobHistory(last=last))


def test_a_base_that_is_not_the_manifests_own_last_release_is_declined() -> None:
    assert reason_of(replace(MANIFEST, base_digest=b"x" * 32)) == "CHAIN_BROKEN"


def test_the_first_base_of_a_job_is_free() -> None:
    check(replace(MANIFEST, base_digest=b"x" * 32, previous_release_digest=b""))


@pytest.mark.parametrize(
    ("release", "reason"),
    [
        ((3, LAST_RELEASE), None),
        ((3, b"x" * 32), "CHAIN_BROKEN"),  # the round before: nothing can lie between
        ((4, b"x" * 32), "CHAIN_BROKEN"),
        ((2, b"x" * 32), None),  # round 3 may have had a release that this owner did not see
    ],
)
def test_a_round_goes_on_from_the_release_that_this_owner_has_seen(
    release: tuple[int, bytes], reason: str | None
) -> None:
    if reason is None:
        check(known=JobHistory(release=release))
    else:
        assert reason_of(known=JobHistory(release=release)) == reason


def test_a_job_with_a_release_cannot_begin_again_from_a_free_base() -> None:
    manifest = replace(MANIFEST, round=9, previous_release_digest=b"")
    assert reason_of(manifest, known=JobHistory(release=(2, LAST_RELEASE))) == "CHAIN_BROKEN"


LIMITED = replace(POLICY, tasks={"tumours": replace(RULES, max_rounds=5)})


def test_a_job_of_more_rounds_than_this_owner_allows_is_declined() -> None:
    check(policy=LIMITED)
    assert reason_of(job=replace(JOB, rounds=6), policy=LIMITED) == "TOO_MANY_ROUNDS"


def test_rounds_are_counted_over_all_jobs_of_a_task() -> None:
    check(known=JobHistory(taken=4), policy=LIMITED)
    assert reason_of(known=JobHistory(taken=5), policy=LIMITED) == "TOO_MANY_ROUNDS"


def test_evaluations_have_the_same_limit_as_trainings() -> None:
    evaluation = replace(MANIFEST, phase=pb.PHASE_EVALUATE)
    check(evaluation, known=JobHistory(taken=4), policy=LIMITED)
    assert reason_of(evaluation, known=JobHistory(taken=5), policy=LIMITED) == "TOO_MANY_ROUNDS"


@pytest.mark.parametrize("phase", [pb.PHASE_TRAIN, pb.PHASE_EVALUATE])
def test_a_task_that_failed_as_often_as_it_may_is_declined_for_every_round(
    phase: "pb.Phase",
) -> None:
    manifest = replace(MANIFEST, phase=phase)
    check(manifest, known=JobHistory(failures=1))
    assert reason_of(manifest, known=JobHistory(failures=2)) == "FAILURES_SPENT"


def test_a_file_that_says_nothing_allows_a_thousand_rounds_and_two_failures() -> None:
    check(known=JobHistory(taken=999, failures=1), job=replace(JOB, rounds=1000))
    assert reason_of(known=JobHistory(taken=1000)) == "TOO_MANY_ROUNDS"
    assert reason_of(job=replace(JOB, rounds=1001)) == "TOO_MANY_ROUNDS"


@pytest.mark.parametrize(
    "manifest",
    [
        replace(MANIFEST, federation="elsewhere"),
        replace(MANIFEST, cohort=("alice", "carol", "dora")),
        replace(MANIFEST, job="another"),
        replace(MANIFEST, weighting=pb.WEIGHTING_EXAMPLES),
        replace(MANIFEST, encoding=pb.ENCODING_BF16_DELTAS),
    ],
)
def test_an_invitation_that_is_not_for_this_owner_is_refused(manifest: Manifest) -> None:
    with pytest.raises(InvalidMessage):
        check(manifest)


IN_INT8 = replace(JOB, encoding=pb.ENCODING_INT8_DELTAS)
WHOLE_ONLY = replace(
    POLICY, tasks={"tumours": replace(RULES, encodings=frozenset({pb.ENCODING_WHOLE}))}
)


def test_a_round_may_be_whole_or_as_its_job_says_and_not_a_third_way() -> None:
    for encoding in (pb.ENCODING_WHOLE, pb.ENCODING_INT8_DELTAS):
        check(replace(MANIFEST, encoding=encoding), IN_INT8)
    with pytest.raises(InvalidMessage):
        check(replace(MANIFEST, encoding=pb.ENCODING_BF16_DELTAS), IN_INT8)


def test_a_round_whose_updates_travel_as_this_owner_does_not_allow_is_declined() -> None:
    manifest = replace(MANIFEST, encoding=pb.ENCODING_INT8_DELTAS)
    assert reason_of(manifest, IN_INT8, policy=WHOLE_ONLY) == "ENCODING_REFUSED"
    check(job=IN_INT8, policy=WHOLE_ONLY)  # a whole round of the same job


def test_an_owners_file_allows_every_way_to_travel_unless_it_says_otherwise() -> None:
    assert TaskSettings.model_fields["encodings"].default == tuple(ENCODINGS)
    assert RULES.encodings == frozenset(ENCODINGS.values())


def test_how_an_evaluation_would_travel_does_not_matter() -> None:
    deltas_only = replace(
        POLICY, tasks={"tumours": replace(RULES, encodings=frozenset({pb.ENCODING_INT8_DELTAS}))}
    )
    check(replace(MANIFEST, phase=pb.PHASE_EVALUATE), IN_INT8, policy=deltas_only)


def test_a_job_of_a_larger_model_than_this_owner_allows_is_declined() -> None:
    size = JOB.schema.total_bytes
    assert (
        reason_of(MANIFEST, JOB, policy=replace(POLICY, largest_model_bytes=size - 1)) == "TOO_MUCH"
    )
    replace(POLICY, largest_model_bytes=size).check(Invited(MANIFEST, b"m" * 32, JOB), JobHistory())


def test_a_cohort_that_mixes_the_groups_of_its_job_is_declined() -> None:
    owners = (*OWNERS, "dora", "erin", "frank")
    kept = replace(JOB, owners=owners, groups=(OWNERS, ("dora", "erin", "frank")))
    check(job=kept)
    mixed = replace(kept, groups=(("alice", "bob", "dora"), ("carol", "erin", "frank")))
    assert reason_of(job=mixed) == "MIXED_GROUPS"
    assert reason_of(replace(MANIFEST, phase=pb.PHASE_EVALUATE), job=mixed) == "MIXED_GROUPS"


def test_an_owner_that_does_not_have_the_task_says_which_it_has() -> None:
    with pytest.raises(Declined, match=r"the task other; this owner's file has tumours$"):
        check(job=replace(JOB, task="other"))
    with pytest.raises(Declined, match=r"this owner's file has none$"):
        check(policy=replace(POLICY, tasks={}))


def test_what_is_wrong_first_is_what_is_said() -> None:
    """The cohort before the round, the round before the chain, the chain before the task."""
    everything = replace(MANIFEST, floor=2, base_digest=b"x" * 32)
    stale = JobHistory(last=LastRound(9, pb.PHASE_TRAIN, b"x" * 32))
    job = replace(JOB, task="other")
    assert reason_of(everything, job, stale) == "FLOOR_TOO_LOW"
    assert reason_of(replace(everything, floor=3), job, stale) == "STALE_ROUND"
    assert reason_of(replace(everything, floor=3), job) == "CHAIN_BROKEN"
    assert reason_of(job=job) == "UNKNOWN_TASK"


TRIMMED = Aggregation(rule=pb.RULE_TRIMMED_MEAN, rule_numbers={"trim": 0.4})
KRUM = Aggregation(rule=pb.RULE_MULTI_KRUM, rule_numbers={"byzantine": 1, "select": 3})
ADAM = Aggregation(
    optimizer=pb.OPTIMIZER_ADAM,
    optimizer_numbers={"lr": 0.1, "beta1": 0.9, "beta2": 0.99, "epsilon": 1e-3},
)
GRADIENTS = replace(ADAM, content=pb.CONTENT_GRADIENTS)


@pytest.mark.parametrize(
    ("aggregation", "rules", "asked", "key"),
    [
        (
            KRUM,
            replace(RULES, rules=frozenset({pb.RULE_MEAN, pb.RULE_SUM})),
            "the rule multi_krum; this owner's file allows mean, sum.",
            "rules",
        ),
        (
            ADAM,
            replace(RULES, optimizers=frozenset({pb.OPTIMIZER_NONE})),
            "the optimizer adam; this owner's file allows none.",
            "optimizers",
        ),
        (
            GRADIENTS,
            replace(RULES, contents=frozenset({pb.CONTENT_WEIGHTS})),
            "gradients; this owner's file allows weights.",
            "contents",
        ),
    ],
    ids=["rule", "optimizer", "gradients"],
)
def test_a_job_whose_updates_become_what_this_owner_does_not_allow_is_declined(
    aggregation: Aggregation, rules: TaskRules, asked: str, key: str
) -> None:
    """Its operator reads what was asked for, what is allowed, and where to allow more."""
    job = replace(JOB, aggregation=aggregation, owners=COHORT)
    manifest = replace(MANIFEST, aggregation=aggregation, cohort=COHORT)
    allows, forbids = (replace(POLICY, tasks={"tumours": each}) for each in (RULES, rules))
    check(manifest, job, policy=allows)
    assert reason_of(manifest, job, policy=forbids) == "RULE_REFUSED"
    with pytest.raises(Declined) as refusal:
        check(manifest, job, policy=forbids)
    assert f"the job asks for {asked}" in str(refusal.value)
    assert str(refusal.value).endswith(f"list it in {key} below [tasks.tumours]")


def test_a_rule_that_averages_over_fewer_owners_than_this_ones_floor_is_declined() -> None:
    job, manifest = replace(JOB, aggregation=TRIMMED), replace(MANIFEST, aggregation=TRIMMED)
    allowing = replace(RULES, rules=frozenset({pb.RULE_TRIMMED_MEAN}))
    policy = replace(POLICY, tasks={"tumours": allowing})
    assert reason_of(manifest, job, policy=policy) == "RULE_REFUSED"  # of three, two are left out
    check(replace(manifest, phase=pb.PHASE_EVALUATE), job, policy=policy)


def test_a_trimmed_mean_is_declined_where_the_file_does_not_name_it() -> None:
    job = replace(JOB, aggregation=TRIMMED, owners=COHORT)
    manifest = replace(MANIFEST, aggregation=TRIMMED, cohort=COHORT)
    assert reason_of(manifest, job) == "RULE_REFUSED"


def test_a_manifest_that_combines_updates_otherwise_than_its_job_is_refused() -> None:
    with pytest.raises(InvalidMessage, match="in another way than its job"):
        check(replace(MANIFEST, aggregation=ADAM))
