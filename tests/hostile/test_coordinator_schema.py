"""What a coordinator can ask for, and what it can be told, read off the descriptors field by field.

A new field fails here until somebody has looked at what it reveals.
"""

from collections.abc import Iterator
from typing import Any

from google.protobuf.descriptor import Descriptor, FileDescriptor

from cairn.v1 import aggregator_pb2, coordinator_pb2
from cairn.v1 import round_pb2 as pb

REQUESTS = {
    "cairn.v1.RegisterJobRequest": ["job_spec", "protocol", "software", "process", "ended"],
    "cairn.v1.SubmitModelRequest": ["header", "chunk"],  # the model that the job starts from
    "cairn.v1.SubmitModelHeader": ["job", "epoch", "digest"],
    "cairn.v1.OpenRoundRequest": ["job", "round", "phase", "cohort", "base_digest", "epoch"],
    "cairn.v1.WatchRoundRequest": ["manifest_digest", "epoch"],
    "cairn.v1.CollectReleaseRequest": ["manifest_digest", "offset", "epoch"],
    "cairn.v1.AbortRoundRequest": ["manifest_digest", "epoch"],
    "cairn.v1.GetStatementRequest": ["manifest_digest", "seen_head"],
    "cairn.v1.ListEntriesRequest": ["first", "limit"],
    "cairn.v1.Signed": ["type", "body", "signature"],  # a head that the aggregator has signed
}
# What a job says of its owners: their names, and bounds that are the same for all of them.
TERMS = [
    *("federation", "name", "task", "settings", "owners", "floor", "rounds", "aggregation"),
    *(
        "weighting",
        "chain",
        "schema",
        "round_deadline_seconds",
        "min_examples",
        "max_examples",
        "encoding",
    ),
    "groups",  # fixed for the job, and each at least as large as the floor
    "statistics",  # columns by name, each counted alike at every owner
]
# Whatever an owner computed reaches a coordinator in one of these, averaged, or not at all.
AVERAGED = {
    "cairn.v1.CollectReleaseResponse.chunk",
    "cairn.v1.ReleaseStatement.metrics",
    "cairn.v1.ReleaseStatement.release_digest",
    "cairn.v1.ReleaseStatement.commitments",
}
# The job's own numbers, said again.
ASKED_FOR = {"cairn.v1.Aggregation.rule_numbers", "cairn.v1.Aggregation.optimizer_numbers"}
NAMED_OWNERS = {"cairn.v1.Exclusion.owner", "cairn.v1.RoundManifest.cohort"}
PUBLIC = {
    "RegisterJobResponse": "floor last_round open_manifest last_statement released epoch",
    "SubmitModelResponse": "",
    "OpenRoundResponse": "manifest",
    "WatchRoundResponse": "state reason exclusions",
    "CollectReleaseResponse": "header chunk",
    "ReleaseHeader": "statement total_bytes",
    "AbortRoundResponse": "",
    "GetStatementResponse": "statement ledger_head",
    "ListEntriesResponse": "entries head",
    "LedgerEntry": "number kind body head",
    "Signed": "type body signature",
    "Exclusion": "owner reason",
    "RoundManifest": (
        "federation job job_digest round phase cohort base_digest previous_release_digest aggregation"
        " weighting floor deadline_unix_ms lease_seconds nonce ledger_head protocol ledger_number"
        " software encoding largest_share draw_commitment"
    ),
    "ReleaseStatement": (
        "manifest_digest federation job round phase release_digest base_digest contributors"
        " exclusions aggregation weighting metrics ledger_head sealed_unix_ms software ledger_number floor"
        " commitments encoding privacy draw_seed"
    ),
    # Of the job's numbers and of who was counted how often, which it knows from the statements.
    "Privacy": "epsilon delta",
    "Aggregation": "content rule rule_numbers optimizer optimizer_numbers",
    "LedgerHead": "federation number head",
}


def services(file: FileDescriptor, *names: str) -> Iterator[Any]:
    for name in names:
        yield from file.services_by_name[name].methods


def reached(message: Descriptor) -> Iterator[Descriptor]:
    """The message and all that its fields hold; maps are their fields' own affair."""
    yield message
    for field in message.fields:
        inner = field.message_type
        if inner is not None and not inner.GetOptions().map_entry:
            yield from reached(inner)


def test_no_request_of_a_coordinator_names_weights_subsets_or_one_owners_values() -> None:
    methods = list(services(aggregator_pb2.DESCRIPTOR, "ReleaseService", "RecordService"))
    found = {
        message.full_name: [field.name for field in message.fields]
        for method in methods
        for message in reached(method.input_type)
    }
    assert found == REQUESTS
    assert [field.name for field in pb.JobSpec.DESCRIPTOR.fields] == TERMS
    maps = [f for f in pb.JobSpec.DESCRIPTOR.fields if _is_map(f)]
    assert [field.name for field in maps] == ["settings"]  # numbers for the task, by setting


def _is_map(field: Any) -> bool:
    return field.message_type is not None and field.message_type.GetOptions().map_entry


def test_no_answer_to_a_coordinator_has_a_field_that_was_not_looked_at() -> None:
    signed = [pb.RoundManifest.DESCRIPTOR, pb.ReleaseStatement.DESCRIPTOR, pb.LedgerHead.DESCRIPTOR]
    methods = list(services(aggregator_pb2.DESCRIPTOR, "ReleaseService", "RecordService"))
    roots = [*(method.output_type for method in methods), *signed]
    found = {
        message.name: " ".join(field.name for field in message.fields)
        for root in roots
        for message in reached(root)
    }
    assert found == PUBLIC
    # A map, or a list of numbers, could hold something of each owner.
    per_something = {
        field.full_name
        for root in roots
        for message in reached(root)
        for field in message.fields
        if _is_map(field) or (field.is_repeated and field.message_type is None)
    }
    assert per_something <= AVERAGED | NAMED_OWNERS | ASKED_FOR


def test_nothing_that_an_owner_computed_travels_towards_a_coordinator() -> None:
    requests = {
        message.full_name: [field.name for field in message.fields]
        for method in services(coordinator_pb2.DESCRIPTOR, "InvitationService")
        for message in reached(method.input_type)
    }
    assert requests == {
        "cairn.v1.AttendRequest": ["federation", "protocol", "software"],
        "cairn.v1.FetchModelRequest": ["digest", "offset"],
    }
