"""Nothing arrives unchecked, and what is sent arrives as it was."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from hypothesis import given
from hypothesis import strategies as st

from cairn import __version__
from cairn.errors import InvalidMessage
from cairn.model.schema import DTYPES, Schema, TensorSpec
from cairn.protocol.aggregation import Aggregation
from cairn.protocol.messages import (
    PROTOCOL,
    JobSpec,
    Manifest,
    job_spec_from_bytes,
    job_spec_to_bytes,
    manifest_from_bytes,
    manifest_to_bytes,
    schema_from_pb,
    schema_to_pb,
)
from cairn.protocol.words import reason_of_word, reason_word
from cairn.v1 import round_pb2 as pb

JOB = JobSpec(
    federation="clinics",
    name="tumours",
    task="tumours",
    settings={"lr": 0.1, "steps": 5.0},
    owners=("alice", "bob", "carol", "dave", "erin", "frank", "grace"),
    floor=3,
    rounds=5,
    weighting=pb.WEIGHTING_EXAMPLES,
    schema=Schema.of([TensorSpec("w", "BF16", (2, 0)), TensorSpec("n", "I64", ())]),
    round_deadline_seconds=60,
    min_examples=10,
    max_examples=5000,
    encoding=pb.ENCODING_INT8_DELTAS,
    groups=(("alice", "carol", "frank"), ("bob", "dave", "erin", "grace")),
)
MANIFEST = Manifest(
    federation="clinics",
    job="tumours",
    job_digest=b"j" * 32,
    round=4,
    phase=pb.PHASE_TRAIN,
    cohort=("alice", "bob", "carol"),
    base_digest=b"b" * 32,
    previous_release_digest=b"b" * 32,
    weighting=pb.WEIGHTING_EQUAL,
    floor=3,
    deadline_unix_ms=1_700_000_000_123,
    lease_seconds=15,
    nonce=b"n" * 32,
    ledger_head=b"l" * 32,
    ledger_number=7,
    encoding=pb.ENCODING_BF16_DELTAS,
    aggregation=Aggregation(rule=pb.RULE_BUCKETED_MEDIAN, rule_numbers={"bucket": 3}),
    draw_commitment=b"d" * 32,
)
_SPECS = st.builds(
    TensorSpec,
    st.text(min_size=1, max_size=40).filter(
        lambda name: name.isprintable() and name != "__metadata__"
    ),
    st.sampled_from(sorted(DTYPES)),
    st.lists(st.integers(min_value=0, max_value=9), max_size=4).map(tuple),
)


def wrong(**changes: Any) -> pb.Aggregation:
    """What becomes of updates, with one thing that a job cannot have."""
    good: dict[str, Any] = {
        "content": pb.CONTENT_WEIGHTS,
        "rule": pb.RULE_MEAN,
        "optimizer": pb.OPTIMIZER_NONE,
    }
    return pb.Aggregation(**good | changes)


def divided(*groups: str) -> list[pb.Group]:
    """Groups of owners of the job, by their first letters."""
    names = {name[0]: name for name in (*JOB.owners, "heidi")}
    return [pb.Group(owners=[names[letter] for letter in group]) for group in groups]


def test_a_job_arrives_as_it_was_sent() -> None:
    assert job_spec_from_bytes(job_spec_to_bytes(JOB)) == JOB


def test_a_jobs_bytes_do_not_depend_on_the_order_of_its_settings() -> None:
    other = replace(JOB, settings={"steps": 5.0, "lr": 0.1})
    assert job_spec_to_bytes(other) == job_spec_to_bytes(JOB)


def test_a_manifest_arrives_as_it_was_signed() -> None:
    assert manifest_from_bytes(manifest_to_bytes(MANIFEST)) == MANIFEST


@given(st.lists(_SPECS, min_size=1, max_size=8, unique_by=lambda spec: spec.name))
def test_every_schema_arrives_as_it_was_sent(specs: list[TensorSpec]) -> None:
    schema = Schema.of(specs)
    assert schema_from_pb(schema_to_pb(schema)) == schema


@pytest.mark.parametrize(
    "changes",
    [
        {"aggregation": pb.Aggregation()},
        {"aggregation": wrong(rule=0)},
        {"aggregation": wrong(optimizer=0)},
        {"aggregation": wrong(content=99)},
        {"aggregation": wrong(rule=pb.RULE_TRIMMED_MEAN)},
        {"aggregation": wrong(rule_numbers={"trim": 0.1})},
        {"aggregation": wrong(optimizer=pb.OPTIMIZER_SGD, optimizer_numbers={"lr": 0.1})},
        {"aggregation": wrong(content=pb.CONTENT_GRADIENTS)},
        {"aggregation": wrong(rule=99)},
        {"chain": 0},
        {"weighting": 0},
        {"weighting": 99},
        {"encoding": 0},
        {"encoding": 4},
        {"federation": ""},
        {"name": "../escape"},
        {"task": "os.system('x')"},
        {"owners": ["bob", "alice", "carol"]},
        {"owners": ["alice", "alice", "bob"]},
        {"owners": ["alice"]},
        {"floor": 0},
        {"floor": 1},
        {"floor": 4},
        {"groups": divided("acf", "bdeg", "")},
        {"groups": divided("abcdefg")},
        {"groups": divided("acf", "bde")},
        {"groups": divided("acf", "bdefg")},
        {"groups": divided("acf", "bdeh")},
        {"groups": divided("ac", "bdefg")},
        {"groups": divided("bdeg", "acf")},
        {"groups": divided("afc", "bdeg")},
        {"groups": divided("acff", "bdeg")},
        {"rounds": 0},
        {"round_deadline_seconds": 0},
        {"min_examples": 5001},
        {"max_examples": 9},
        {"max_examples": 1 << 31},
        {"min_examples": 1 << 31, "max_examples": 1 << 32},
        {"settings": {"not a word": 1.0}},
        {"schema": pb.ModelSchema()},
        {"schema": pb.ModelSchema(tensors=[pb.TensorSpec(name="w", shape=[1])])},
        {"schema": pb.ModelSchema(tensors=[pb.TensorSpec(name="", dtype=pb.DTYPE_F32)])},
        {"schema": pb.ModelSchema(tensors=[pb.TensorSpec(name="w", dtype=pb.DTYPE_F32)] * 2)},
        {
            "schema": pb.ModelSchema(
                tensors=[pb.TensorSpec(name="w", dtype=pb.DTYPE_F64, shape=[1 << 61])]
            )
        },
    ],
    ids=str,
)
def test_a_job_with_a_missing_or_impossible_field_is_refused(changes: dict[str, object]) -> None:
    message = pb.JobSpec.FromString(job_spec_to_bytes(JOB))
    for field in changes:
        message.ClearField(field)
    message.MergeFrom(pb.JobSpec(**changes))  # type: ignore[arg-type]  # the changes are the test's
    with pytest.raises(InvalidMessage):
        job_spec_from_bytes(message.SerializeToString())


@pytest.mark.parametrize(
    ("field", "most"),
    [("round", 1 << 31), ("deadline_unix_ms", 1 << 62), ("lease_seconds", 604_800)],
)
def test_a_number_of_a_manifest_has_a_limit(field: str, most: int) -> None:
    changes: dict[str, Any] = {field: most}
    largest = replace(MANIFEST, **changes)
    assert manifest_from_bytes(manifest_to_bytes(largest)) == largest
    changes[field] += 1
    beyond = replace(MANIFEST, **changes)
    with pytest.raises(InvalidMessage, match=f"{field} is {most + 1}; it must be 1 to {most}"):
        manifest_from_bytes(manifest_to_bytes(beyond))


@pytest.mark.parametrize("change", [{"phase": pb.PHASE_EVALUATE}, {"aggregation": Aggregation()}])
def test_a_manifest_that_commits_to_a_draw_where_nothing_is_drawn_is_refused(
    change: dict[str, Any],
) -> None:
    with pytest.raises(InvalidMessage, match="draw_commitment has 32 bytes instead of 0"):
        manifest_from_bytes(manifest_to_bytes(replace(MANIFEST, **change)))


def test_a_schema_that_is_not_in_canonical_order_is_refused() -> None:
    message = schema_to_pb(JOB.schema)
    message.tensors.reverse()
    with pytest.raises(InvalidMessage, match="order"):
        schema_from_pb(message)


# What a job or a manifest may leave out, and what that says.
MAY_BE_MISSING = {
    "settings": "the task has none",
    "groups": "a cohort may be of any of the owners",
    "previous_release_digest": "there is no release yet",
    "ledger_number": "the ledger has no entry yet",
    "software": "it is told to people and decides nothing",
}
READERS: list[tuple[type[Message], bytes, Callable[[bytes], object]]] = [
    (pb.JobSpec, job_spec_to_bytes(JOB), job_spec_from_bytes),
    (pb.RoundManifest, manifest_to_bytes(MANIFEST), manifest_from_bytes),
]
FIELDS = [
    pytest.param(kind, body, read, field, id=field.full_name)
    for kind, body, read in READERS
    for field in kind.DESCRIPTOR.fields
    if field.name != "statistics"  # which a job of a model lacks: test_statistics.py
]
ENUMS = [
    pytest.param(kind, body, read, field, id=field.full_name)
    for kind, body, read in READERS
    for field in kind.DESCRIPTOR.fields
    if field.enum_type is not None
]


@pytest.mark.parametrize(("kind", "body", "read", "field"), FIELDS)
def test_a_message_without_one_of_its_fields_is_refused_unless_it_may_be_empty(
    kind: type[Message], body: bytes, read: Callable[[bytes], object], field: FieldDescriptor
) -> None:
    message = kind.FromString(body)
    assert field in {present for present, _ in message.ListFields()}
    message.ClearField(field.name)
    if field.name in MAY_BE_MISSING:
        read(message.SerializeToString())
    else:
        with pytest.raises(InvalidMessage):
            read(message.SerializeToString())


@pytest.mark.parametrize(("kind", "body", "read", "field"), ENUMS)
def test_an_enum_value_that_this_version_does_not_know_is_refused(
    kind: type[Message], body: bytes, read: Callable[[bytes], object], field: FieldDescriptor
) -> None:
    message = kind.FromString(body)
    setattr(message, field.name, 99)
    with pytest.raises(InvalidMessage, match=f"{field.name} has the value 99"):
        read(message.SerializeToString())


def test_an_element_type_that_this_version_does_not_know_is_refused() -> None:
    message = pb.JobSpec.FromString(job_spec_to_bytes(JOB))
    message.schema.tensors[0].dtype = 99  # type: ignore[assignment]  # what a newer node might say
    with pytest.raises(InvalidMessage, match="dtype has the value 99"):
        job_spec_from_bytes(message.SerializeToString())


def test_another_version_of_the_protocol_is_refused_with_the_names_of_both() -> None:
    message = pb.RoundManifest.FromString(manifest_to_bytes(MANIFEST))
    message.protocol = 7
    message.software = "9.9.9"
    message.phase = 99  # type: ignore[assignment]  # another version may differ in all else
    with pytest.raises(InvalidMessage) as refusal:
        manifest_from_bytes(message.SerializeToString())
    assert f"Cairn {__version__}, which speaks version {PROTOCOL}" in str(refusal.value)
    assert "Cairn 9.9.9, which speaks version 7" in str(refusal.value)
    assert refusal.value.reason == pb.REASON_OTHER_VERSION


@given(st.binary(max_size=200))
def test_random_bytes_are_refused_and_never_anything_worse(body: bytes) -> None:
    for read in (job_spec_from_bytes, manifest_from_bytes):
        with pytest.raises(InvalidMessage):
            read(body)


@pytest.mark.parametrize("reason", pb.Reason.values())
def test_every_reason_has_a_word_that_leads_back_to_it(reason: int) -> None:
    assert reason_of_word(reason_word(reason)) == reason


def test_an_unknown_word_is_no_reason() -> None:
    assert reason_of_word("BECAUSE") == pb.REASON_UNSPECIFIED
