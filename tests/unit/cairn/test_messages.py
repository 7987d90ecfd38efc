"""Nothing arrives unchecked, and what is sent arrives as it was."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cairn.errors import InvalidMessage
from cairn.messages import (
    JobSpec,
    Manifest,
    job_spec_from_bytes,
    job_spec_to_bytes,
    manifest_from_bytes,
    manifest_to_bytes,
    reason_of_word,
    reason_word,
    schema_from_pb,
    schema_to_pb,
)
from cairn.tensors import DTYPES, Schema, TensorSpec
from cairn.v1 import round_pb2 as pb

JOB = JobSpec(
    federation="clinics",
    name="tumours",
    task="tumours",
    settings={"lr": 0.1, "steps": 5.0},
    owners=("alice", "bob", "carol"),
    floor=3,
    rounds=5,
    weighting=pb.WEIGHTING_EXAMPLES,
    schema=Schema.of([TensorSpec("w", "BF16", (2, 0)), TensorSpec("n", "I64", ())]),
    round_deadline_seconds=60,
)
MANIFEST = Manifest(
    federation="clinics",
    job="tumours",
    job_digest=b"j" * 32,
    round=4,
    phase=pb.PHASE_EVALUATE,
    cohort=("alice", "bob", "carol"),
    base_digest=b"b" * 32,
    previous_release_digest=b"b" * 32,
    weighting=pb.WEIGHTING_EQUAL,
    floor=3,
    deadline_unix_ms=1_700_000_000_123,
    lease_seconds=15,
    nonce=b"n" * 32,
    ledger_head=b"l" * 32,
)
_SPECS = st.builds(
    TensorSpec,
    st.text(min_size=1, max_size=40).filter(
        lambda name: name.isprintable() and name != "__metadata__"
    ),
    st.sampled_from(sorted(DTYPES)),
    st.lists(st.integers(min_value=0, max_value=9), max_size=4).map(tuple),
)


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
        {"rule": 0},
        {"rule": 99},
        {"chain": 0},
        {"weighting": 0},
        {"weighting": 99},
        {"federation": ""},
        {"name": "../escape"},
        {"task": "os.system('x')"},
        {"owners": ["bob", "alice", "carol"]},
        {"owners": ["alice", "alice", "bob"]},
        {"owners": ["alice"]},
        {"floor": 0},
        {"floor": 1},
        {"floor": 4},
        {"rounds": 0},
        {"round_deadline_seconds": 0},
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


def test_a_schema_that_is_not_in_canonical_order_is_refused() -> None:
    message = schema_to_pb(JOB.schema)
    message.tensors.reverse()
    with pytest.raises(InvalidMessage, match="order"):
        schema_from_pb(message)


@pytest.mark.parametrize("field", [f.name for f in pb.RoundManifest.DESCRIPTOR.fields])
def test_a_manifest_without_one_of_its_fields_is_refused_or_says_nothing_new(field: str) -> None:
    message = pb.RoundManifest.FromString(manifest_to_bytes(MANIFEST))
    message.ClearField(field)
    body = message.SerializeToString()
    if field in {"previous_release_digest", "deadline_unix_ms"}:
        assert manifest_from_bytes(body) != MANIFEST  # empty before the first release; 1970
    else:
        with pytest.raises(InvalidMessage):
            manifest_from_bytes(body)


def test_another_version_of_the_protocol_is_named() -> None:
    message = pb.RoundManifest.FromString(manifest_to_bytes(MANIFEST))
    message.protocol = 7
    with pytest.raises(InvalidMessage, match=r"version 1 .* version 7"):
        manifest_from_bytes(message.SerializeToString())


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
