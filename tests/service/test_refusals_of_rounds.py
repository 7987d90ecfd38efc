"""What the aggregator refuses a coordinator: each refusal over the real network, with its sentence."""

import dataclasses
from pathlib import Path
from typing import Any, cast

import grpc
import pytest

from cairn.model.schema import Schema, TensorSpec
from cairn.protocol.messages import PROTOCOL, JobSpec, job_spec_to_bytes
from cairn.v1 import aggregator_pb2
from cairn.v1 import round_pb2 as pb
from tests.service.network import PROCESS, SECONDS, SMALL, Job, Network, refused

INVALID = grpc.StatusCode.INVALID_ARGUMENT
PRECONDITION = grpc.StatusCode.FAILED_PRECONDITION
EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED


def register(job: Job, body: bytes, protocol: int = PROTOCOL) -> None:
    request = aggregator_pb2.RegisterJobRequest(job_spec=body, protocol=protocol, process=PROCESS)
    job.coordinator.RegisterJob(request, timeout=SECONDS)


def changed(spec: JobSpec, **changes: Any) -> bytes:
    return job_spec_to_bytes(dataclasses.replace(spec, **changes))


def new_job(network: Network, **changes: Any) -> bytes:
    """The bytes of a job that is good but for the changes, under a name of its own."""
    spec = network.job().spec
    return changed(spec, **{"name": f"{spec.name}-changed", **changes})


def test_a_cohort_of_one_is_refused(network: Network) -> None:
    with refused(INVALID, "there must be at least 2", "COHORT_TOO_SMALL"):
        network.job().open(["alice"])


def test_an_empty_cohort_is_refused(network: Network) -> None:
    with refused(INVALID, "there must be at least 2", "COHORT_TOO_SMALL"):
        network.job().open([])


def test_a_cohort_below_the_jobs_floor_is_refused(network: Network) -> None:
    with refused(INVALID, "a cohort of 3 is below the floor of 4", "COHORT_TOO_SMALL"):
        network.job(floor=4).open(["alice", "bob", "carol"])


def test_a_jobs_floor_below_the_aggregators_is_raised_to_it(timed_network: Network) -> None:
    job = timed_network.job(floor=2)
    assert job.register().floor == 3
    with refused(INVALID, "a cohort of 2 is below the floor of 3", "COHORT_TOO_SMALL"):
        job.open(["alice", "bob"])
    opened = job.open(["alice", "bob", "carol"])
    assert opened.manifest.floor == 3
    opened.abort()


def test_a_job_with_fewer_owners_than_the_aggregators_floor_is_refused(
    timed_network: Network,
) -> None:
    with refused(INVALID, "no round could ever be released", "COHORT_TOO_SMALL"):
        timed_network.job(floor=2, owners=["alice", "bob"])


@pytest.mark.parametrize("floor", [0, 1, 6])
def test_a_job_with_an_impossible_floor_is_refused(network: Network, floor: int) -> None:
    with refused(INVALID, f"the job's floor is {floor}", "COHORT_TOO_SMALL"):
        network.job(floor=floor)


def test_a_model_without_a_single_value_is_refused_when_its_job_is_registered(
    network: Network,
) -> None:
    """Its rounds ended with STORAGE_FAILED, after everybody had trained."""
    empty = Schema.of([TensorSpec("a", "F32", (0,)), TensorSpec("b", "I64", (3, 0))])
    with refused(INVALID, "no tensor of the model has an element", "MALFORMED"):
        network.job(schema=empty)


def test_a_stranger_in_the_cohort_is_refused(network: Network) -> None:
    with refused(INVALID, "zoe cannot be in a cohort", "UNKNOWN_OWNER"):
        network.job().open(["alice", "bob", "zoe"])


def test_an_owner_that_the_job_does_not_list_is_refused_in_its_cohort(network: Network) -> None:
    with refused(INVALID, "carol cannot be in a cohort", "UNKNOWN_OWNER"):
        network.job(owners=["alice", "bob"]).open(["alice", "bob", "carol"])


@pytest.mark.parametrize("cohort", [["bob", "alice"], ["alice", "alice", "bob"]])
def test_a_cohort_that_is_not_sorted_and_unique_is_refused(
    network: Network, cohort: list[str]
) -> None:
    with refused(INVALID, "sorted, each once", "MALFORMED"):
        network.job().open(cohort)


@pytest.mark.parametrize("number", [0, 2, 7])
def test_a_round_out_of_turn_is_refused(network: Network, number: int) -> None:
    with refused(PRECONDITION, "out of turn", "OUT_OF_TURN"):
        network.job().open(number=number)


def test_a_second_open_round_is_refused(network: Network) -> None:
    job = network.job()
    job.open()
    with refused(PRECONDITION, "is open", "OUT_OF_TURN"):
        job.open(number=2)


def test_an_open_round_keeps_its_cohort_and_its_base(network: Network) -> None:
    job = network.job()
    job.open(["alice", "bob"])
    with refused(PRECONDITION, "another cohort or base", "CONFLICT"):
        job.open(["alice", "bob", "carol"])
    with refused(PRECONDITION, "another cohort or base", "CONFLICT"):
        job.open(["alice", "bob"], base=bytes([1]) * 16)


def test_the_same_request_is_answered_with_the_same_manifest(network: Network) -> None:
    job = network.job()
    assert job.open().signed == job.open().signed


def test_a_released_rounds_number_is_never_used_again(network: Network) -> None:
    job = network.job()
    job.run({"alice": bytes(16), "bob": bytes(16)})
    with refused(PRECONDITION, "another cohort or base", "CONFLICT"):
        job.open(["alice", "carol"], number=1)


def test_an_aborted_rounds_number_is_burnt(network: Network) -> None:
    job = network.job()
    job.open().abort()
    with refused(PRECONDITION, "another cohort or base", "CONFLICT"):
        job.open(["alice", "carol"], number=1)
    assert job.open(number=2).manifest.round == 2


def test_the_base_of_a_round_must_be_the_last_release(network: Network) -> None:
    job = network.job()
    released = job.run({"alice": bytes([0, 0, 128, 63] * 4), "bob": bytes(16)}).payload
    with refused(PRECONDITION, "the base is not the last release", "CHAIN_BROKEN"):
        job.open(number=2)
    assert job.open(number=2, base=released).manifest.base_digest == SMALL.digest(released)


def test_after_the_last_round_of_a_job_none_can_be_opened(network: Network) -> None:
    job = network.job(rounds=1)
    released = job.run({"alice": bytes(16), "bob": bytes(16)}).payload
    with refused(PRECONDITION, "all 1 rounds"):
        job.open(number=2, base=released)


def test_only_the_last_release_can_be_evaluated_and_once(network: Network) -> None:
    job = network.job()
    with refused(PRECONDITION, "cannot be evaluated"):
        job.open(phase=pb.PHASE_EVALUATE)
    released = job.run({"alice": bytes(16), "bob": bytes(16)}).payload
    job.open(base=released, phase=pb.PHASE_EVALUATE).abort()
    with refused(PRECONDITION, "another cohort or base", "CONFLICT"):
        job.open(["alice", "carol"], base=released, phase=pb.PHASE_EVALUATE)
    with refused(PRECONDITION, "cannot be evaluated"):
        job.open(number=2, base=released, phase=pb.PHASE_EVALUATE)


def test_an_unknown_phase_is_refused(network: Network) -> None:
    with refused(INVALID, "phase"):
        network.job().open(phase=cast("pb.Phase", 9))


def test_a_round_of_an_unknown_job_is_refused(network: Network) -> None:
    job = network.job()
    job.spec = dataclasses.replace(job.spec, name="nowhere")
    with refused(grpc.StatusCode.NOT_FOUND, "there is no job nowhere", "NOT_FOUND"):
        job.open()


def test_other_bytes_under_a_jobs_name_are_refused(network: Network) -> None:
    job = network.job()
    with refused(grpc.StatusCode.ALREADY_EXISTS, "give the changed job a new name", "CONFLICT"):
        register(job, changed(job.spec, rounds=6))


def test_registering_again_tells_how_far_the_job_is(network: Network) -> None:
    job = network.job()
    released = job.run({"alice": bytes(16), "bob": bytes(16)}).payload
    opened = job.open(number=2, base=released)
    state = job.register()
    assert (state.last_round, state.released) == (2, 1)
    assert state.open_manifest == opened.signed
    assert state.HasField("last_statement")


def test_another_version_of_the_protocol_is_refused(network: Network) -> None:
    job = network.job()
    other = PROTOCOL + 1
    with refused(INVALID, f"speaks version {other}: install the same", "OTHER_VERSION"):
        register(job, job.body, protocol=other)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"federation": "elsewhere"}, "elsewhere"),
        ({"owners": ("alice", "zoe")}, "zoe"),
        ({"rounds": 0}, "rounds"),
        ({"round_deadline_seconds": 0}, "round_deadline_seconds"),
        ({"round_deadline_seconds": 604_801}, "round_deadline_seconds"),
        ({"name": "../x"}, "job"),
        ({"task": "a/b"}, "task"),
        ({"settings": {"not a word": 1.0}}, "setting"),
        ({"weighting": pb.WEIGHTING_UNSPECIFIED}, "weighting"),
    ],
)
def test_a_job_that_breaks_a_rule_is_refused(
    network: Network, changes: dict[str, Any], words: str
) -> None:
    with refused(INVALID, words):
        register(network.job(), new_job(network, **changes))


def test_bytes_that_are_no_job_are_refused(network: Network) -> None:
    with refused(INVALID, "not a cairn.v1.JobSpec"):
        register(network.job(), b"\xff\xff\xff")


def test_a_model_without_tensors_is_refused(network: Network) -> None:
    body = pb.JobSpec.FromString(new_job(network))
    body.schema.ClearField("tensors")
    with refused(INVALID, "1 to"):
        register(network.job(), body.SerializeToString())


def test_a_model_larger_than_any_machine_is_refused(network: Network) -> None:
    body = pb.JobSpec.FromString(new_job(network))
    body.schema.tensors[0].shape[:] = [1 << 62]
    with refused(INVALID, "larger than"):
        register(network.job(), body.SerializeToString())


def test_tensors_out_of_canonical_order_are_refused(network: Network) -> None:
    two = Schema.of([TensorSpec("a", "F32", (1,)), TensorSpec("b", "F32", (1,))])
    body = pb.JobSpec.FromString(new_job(network, schema=two))
    body.schema.tensors.reverse()
    with refused(INVALID, "canonical order"):
        register(network.job(), body.SerializeToString())


def test_an_unknown_manifest_is_not_found(network: Network) -> None:
    opened = network.job().open()
    opened.digest = bytes(32)
    for attempt in (opened.collect, opened.abort, opened.ends, lambda: opened.join("alice")):
        with refused(grpc.StatusCode.NOT_FOUND):
            attempt()


def test_a_release_cannot_be_collected_before_there_is_one(network: Network) -> None:
    opened = network.job().open()
    with refused(PRECONDITION, "not released", "OUT_OF_TURN"):
        opened.collect()
    opened.abort()
    with refused(PRECONDITION, "not released", "OUT_OF_TURN"):
        opened.collect()


def test_a_released_round_cannot_be_aborted(network: Network) -> None:
    job = network.job()
    opened = job.open()
    for owner in ("alice", "bob"):
        opened.join(owner)
        opened.push(owner, bytes(16))
    opened.ends()
    with refused(PRECONDITION, "ended", "ROUND_ENDED"):
        opened.abort()


def test_an_aborted_round_may_be_aborted_again_and_says_so_to_all(network: Network) -> None:
    opened = network.job().open()
    opened.abort()
    opened.abort()
    ended = opened.ends()
    assert (ended.state, ended.reason) == (aggregator_pb2.ROUND_STATE_ABORTED, "ABORTED")
    with refused(PRECONDITION, "ended", "ROUND_ENDED"):
        opened.join("alice")


def test_a_replaced_release_is_gone(network: Network) -> None:
    job = network.job()
    updates = {"alice": bytes(16), "bob": bytes(16)}
    first = job.open(sorted(updates))
    for owner, update in updates.items():
        first.join(owner)
        first.push(owner, update)
    released = first.ends().payload
    job.run(updates, number=2, base=released)
    with refused(grpc.StatusCode.NOT_FOUND, "later release", "NOT_FOUND"):
        first.collect()


@pytest.mark.parametrize("limit", [0, 1001])
def test_the_ledger_is_listed_in_parts_of_at_most_a_thousand(network: Network, limit: int) -> None:
    with refused(INVALID, "limit", "MALFORMED"):
        network.record("alice").ListEntries(
            aggregator_pb2.ListEntriesRequest(first=1, limit=limit), timeout=SECONDS
        )


def test_a_job_is_closed_after_twenty_rounds_in_a_row_that_ended_without_a_release(
    network: Network,
) -> None:
    """Else a coordinator could abort again and again until only those are left that it wants."""
    job = network.job()
    for number in range(1, 21):
        job.open(number=number).abort()
    with refused(PRECONDITION, "20 rounds of", "TOO_MANY_ABORTS"):
        job.open(number=21)
    assert job.register().last_round == 20
    assert network.job().open().manifest.round == 1


def test_a_release_lets_a_job_end_rounds_without_one_again(network: Network) -> None:
    job = network.job()
    for number in range(1, 20):
        job.open(number=number).abort()
    base = job.run({"alice": bytes(16), "bob": bytes(16)}, number=20).payload
    for number in range(21, 41):
        job.open(number=number, base=base).abort()
    with refused(PRECONDITION, reason="TOO_MANY_ABORTS"):
        job.open(number=41, base=base)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"min_examples": 0}, "min_examples is 0"),
        ({"max_examples": 2**31}, "max_examples is 2147483648"),
        ({"min_examples": 7, "max_examples": 6}, "max_examples is 6; it must be 7 to"),
        ({"max_examples": 0}, "max_examples is 0"),
    ],
)
def test_a_job_with_impossible_bounds_of_examples_is_refused(
    network: Network, changes: dict[str, int], words: str
) -> None:
    with refused(INVALID, words, "MALFORMED"):
        register(network.job(), new_job(network, **changes))


def test_a_job_in_which_one_update_could_outweigh_all_others_is_refused(network: Network) -> None:
    network.job(weighting=pb.WEIGHTING_EXAMPLES, examples=(2, 2000))
    with refused(INVALID, "1001 times as much as another", "EXAMPLES_REFUSED"):
        network.job(weighting=pb.WEIGHTING_EXAMPLES, examples=(2, 2001))
    network.job(weighting=pb.WEIGHTING_EQUAL, examples=(1, 2**31 - 1))


def test_a_model_larger_than_the_aggregator_takes_is_refused_when_its_job_is_registered(
    network: Network,
) -> None:
    """8192 MiB by default; nothing is allocated, so the test needs no such memory."""
    network.job(schema=Schema.of([TensorSpec("w", "U8", (8 << 30,))]))
    with refused(EXHAUSTED, "raise largest_model_megabytes in its file", "TOO_MUCH"):
        network.job(schema=Schema.of([TensorSpec("w", "U8", ((8 << 30) + 1,))]))


def test_a_coordinators_jobs_without_a_release_may_not_fill_the_disk(tmp_path: Path) -> None:
    """256 MiB of specifications; a field that this version does not know is kept with the rest."""
    network = Network(tmp_path)
    padding = b"\xfa\x3f" + b"\x80\x80\x80\x07" + bytes(7 << 21)  # field 1023, 14 MiB
    names = iter(f"large-{number}" for number in range(20))

    def large(coordinator: Any) -> None:
        body = changed(job.spec, name=next(names)) + padding
        request = aggregator_pb2.RegisterJobRequest(
            job_spec=body, protocol=PROTOCOL, process=PROCESS
        )
        coordinator.RegisterJob(request, timeout=SECONDS)

    job = network.job()
    for _ in range(18):
        large(job.coordinator)
    with refused(EXHAUSTED, "have no release yet", "TOO_MUCH"):
        large(job.coordinator)
    large(network.release("rival"))  # another coordinator has its own
    assert job.run({"alice": bytes(16), "bob": bytes(16)}).payload == bytes(
        16
    )  # nobody is hindered
    network.stop()
