"""One update as it arrives, and who is pushing now."""

import math
import struct
from dataclasses import replace

import pytest

from aggregator_node.rounds.upload import (
    MIN_CHUNK_BYTES,
    RoundContext,
    Upload,
    Uploads,
    check_header,
)
from cairn.errors import CairnError, InvalidMessage, LimitExceeded, UpdateRefused
from cairn.model.schema import Schema, TensorSpec
from cairn.model.validation import Bounds
from cairn.protocol.messages import JobSpec, Manifest
from cairn.runtime.timeouts import SHORT_WAIT_SECONDS
from cairn.v1 import aggregator_pb2
from cairn.v1 import round_pb2 as pb
from tests.unit.aggregator_node.rounds.calls import FakeCall

SCHEMA = Schema.of([TensorSpec("w", "F32", (3,))])
BASE = bytes(32)
MANIFEST = Manifest(
    federation="clinics",
    job="tumours",
    job_digest=bytes(32),
    round=1,
    phase=pb.PHASE_TRAIN,
    cohort=("alice", "bob"),
    base_digest=BASE,
    previous_release_digest=b"",
    weighting=pb.WEIGHTING_EQUAL,
    floor=2,
    deadline_unix_ms=0,
    lease_seconds=15,
    nonce=bytes(32),
    ledger_head=bytes(32),
    ledger_number=0,
    encoding=pb.ENCODING_WHOLE,
)
JOB = JobSpec(
    federation="clinics",
    name="tumours",
    task="tumours",
    settings={},
    owners=("alice", "bob"),
    floor=2,
    rounds=1,
    weighting=pb.WEIGHTING_EQUAL,
    schema=SCHEMA,
    round_deadline_seconds=60,
    min_examples=5,
    max_examples=500,
)
CONTEXT = RoundContext(MANIFEST, JOB, Bounds(value=100.0, integer=1000))
EVALUATION = replace(CONTEXT, manifest=replace(MANIFEST, phase=pb.PHASE_EVALUATE))
NOW = 1000.0
LARGE = Schema.of([TensorSpec("w", "F32", (5 * MIN_CHUNK_BYTES // 8,))])  # two and a half chunks


def header(**changes: object) -> aggregator_pb2.UpdateHeader:
    values: dict[str, object] = {
        "manifest_digest": bytes(32),
        "base_digest": BASE,
        "examples": 10,
        "total_bytes": 12,
        "metrics": {"loss": 0.5},
        "salt": bytes(32),
    }
    return aggregator_pb2.UpdateHeader(**{**values, **changes})  # type: ignore[arg-type]  # the changes are the test's


def push(context: RoundContext = CONTEXT) -> Upload:
    """A push that has its buffer, as one of an update that may be accepted has."""
    arriving = Upload(header(total_bytes=context.total_bytes), context, FakeCall())
    arriving.keep_in(memoryview(bytearray(context.total_bytes)), turn_ends=math.inf)
    return arriving


def commit(payload: bytes) -> aggregator_pb2.UpdateCommit:
    return aggregator_pb2.UpdateCommit(payload_digest=SCHEMA.digest(payload))


GOOD = struct.pack("<3f", 1.0, -2.0, 3.5)


@pytest.mark.parametrize("examples", [1, 10, (1 << 31) - 1])
def test_a_good_header_is_taken_whatever_the_jobs_bounds_on_examples_are(examples: int) -> None:
    check_header(header(examples=examples), CONTEXT)


@pytest.mark.parametrize(("examples", "weight"), [(1, 5), (5, 5), (6, 6), (500, 500), (501, 500)])
def test_fewer_or_more_examples_than_the_bounds_count_as_these(examples: int, weight: int) -> None:
    by_examples = replace(CONTEXT, job=replace(JOB, weighting=pb.WEIGHTING_EXAMPLES))
    assert by_examples.weight(examples) == weight
    assert CONTEXT.weight(examples) == 1


@pytest.mark.parametrize(
    ("changes", "error", "reason"),
    [
        ({"base_digest": b"\x01" * 32}, UpdateRefused, pb.REASON_BASE_MISMATCH),
        ({"total_bytes": 13}, InvalidMessage, pb.REASON_MALFORMED),
        ({"total_bytes": 1 << 60}, InvalidMessage, pb.REASON_MALFORMED),
        ({"examples": 0}, UpdateRefused, pb.REASON_EXAMPLES_REFUSED),
        ({"examples": 1 << 31}, UpdateRefused, pb.REASON_EXAMPLES_REFUSED),
        ({"examples": (1 << 64) - 1}, UpdateRefused, pb.REASON_EXAMPLES_REFUSED),
        ({"metrics": {"loss": math.nan}}, UpdateRefused, pb.REASON_NON_FINITE),
        ({"metrics": {"loss": -math.inf}}, UpdateRefused, pb.REASON_NON_FINITE),
        ({"metrics": {"": 1.0}}, InvalidMessage, pb.REASON_MALFORMED),
        ({"metrics": {"é" * 33: 1.0}}, InvalidMessage, pb.REASON_MALFORMED),
        ({"metrics": {str(i): 1.0 for i in range(65)}}, InvalidMessage, pb.REASON_MALFORMED),
    ],
)
def test_a_bad_header_is_refused(
    changes: dict[str, object], error: type[CairnError], reason: "pb.Reason"
) -> None:
    with pytest.raises(error) as refusal:
        check_header(header(**changes), CONTEXT)
    assert refusal.value.reason == reason


def large_push() -> Upload:
    return push(replace(CONTEXT, job=replace(JOB, schema=LARGE)))


@pytest.mark.parametrize("cuts", [[2.5], [1, 1, 0.5], [1, 1.5], [2.25, 0.25], [1.25, 1.25]])
def test_a_whole_update_is_taken_however_it_is_cut(cuts: list[float]) -> None:
    good = struct.pack("<f", 0.75) * (LARGE.total_bytes // 4)
    arriving = large_push()
    begin = 0
    for chunks in cuts:
        length = int(chunks * MIN_CHUNK_BYTES)
        arriving.write(memoryview(good[begin : begin + length]))
        begin += length
    last = aggregator_pb2.UpdateCommit(payload_digest=LARGE.digest(good))
    assert arriving.finish(last) == LARGE.digest(good)
    assert arriving.payload is not None
    assert bytes(arriving.payload) == good


@pytest.mark.parametrize("cuts", [[0.5], [1, 0.25], [1, 1, 0.25]])
def test_a_chunk_that_is_too_small_and_not_the_last_is_refused(cuts: list[float]) -> None:
    """A stream of single bytes would keep its thread and its memory for ever."""
    arriving = large_push()
    *before, last = (bytes(int(chunks * MIN_CHUNK_BYTES)) for chunks in cuts)
    for chunk in before:
        arriving.write(memoryview(chunk))
    with pytest.raises(InvalidMessage, match="every chunk but the last"):
        arriving.write(memoryview(last))


def test_a_chunk_beyond_1_mib_is_refused() -> None:
    schema = Schema.of([TensorSpec("w", "F32", (1 << 20,))])
    context = replace(CONTEXT, job=replace(JOB, schema=schema))
    arriving = push(context)
    arriving.write(memoryview(bytes(1 << 20)))
    with pytest.raises(LimitExceeded, match="at most 1048576 bytes"):
        arriving.write(memoryview(bytes((1 << 20) + 1)))


def test_one_byte_more_than_declared_is_refused_when_it_arrives() -> None:
    arriving = push()
    arriving.write(memoryview(GOOD))
    with pytest.raises(LimitExceeded):
        arriving.write(memoryview(b"\x00"))


def test_an_empty_chunk_is_refused_because_a_stream_of_them_would_never_end() -> None:
    with pytest.raises(InvalidMessage):
        push().write(memoryview(b""))


def test_fewer_bytes_than_declared_are_no_update() -> None:
    arriving = push()
    with pytest.raises(InvalidMessage):
        arriving.write(memoryview(GOOD[:-1]))
    with pytest.raises(UpdateRefused) as refusal:
        arriving.finish(commit(GOOD))
    assert refusal.value.reason == pb.REASON_CORRUPT_UPDATE


def test_a_flipped_bit_is_found() -> None:
    arriving = push()
    arriving.write(memoryview(bytes([GOOD[0] ^ 1]) + GOOD[1:]))
    with pytest.raises(UpdateRefused) as refusal:
        arriving.finish(commit(GOOD))
    assert refusal.value.reason == pb.REASON_CORRUPT_UPDATE


@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_finite_is_refused_wherever_it_stands(place: int, value: float) -> None:
    values = [1.0, 2.0, 3.0]
    values[place] = value
    payload = struct.pack("<3f", *values)
    arriving = push()
    arriving.write(memoryview(payload))
    with pytest.raises(UpdateRefused) as refusal:
        arriving.finish(commit(payload))
    assert refusal.value.reason == pb.REASON_NON_FINITE


def test_an_evaluation_carries_no_tensors() -> None:
    check_header(header(total_bytes=0), EVALUATION)
    with pytest.raises(InvalidMessage, match="its layout has 0"):
        check_header(header(), EVALUATION)
    arriving = Upload(header(total_bytes=0), EVALUATION, FakeCall())
    assert arriving.finish(aggregator_pb2.UpdateCommit()) == b""
    with pytest.raises(InvalidMessage):
        arriving.finish(commit(GOOD))


@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize("value", [100.00001, -100.00001, 1e38])
def test_a_value_beyond_the_bounds_is_refused_wherever_it_stands(place: int, value: float) -> None:
    values = [100.0, -100.0, 100.0]
    taken, refused = push(), push()
    taken.write(memoryview(struct.pack("<3f", *values)))
    assert taken.finish(commit(struct.pack("<3f", *values)))
    values[place] = value
    payload = struct.pack("<3f", *values)
    refused.write(memoryview(payload))
    with pytest.raises(UpdateRefused) as refusal:
        refused.finish(commit(payload))
    assert refusal.value.reason == pb.REASON_MAGNITUDE_REFUSED


def test_without_a_buffer_an_update_is_compared_by_its_digest_and_kept_nowhere() -> None:
    """One that is repeated after it was accepted: its values were checked then."""
    arriving = Upload(header(), CONTEXT, FakeCall())
    arriving.write(memoryview(GOOD))
    assert arriving.payload is None
    assert arriving.finish(commit(GOOD)) == SCHEMA.digest(GOOD)
    with pytest.raises(UpdateRefused) as refusal:
        arriving.finish(commit(bytes(12)))
    assert refusal.value.reason == pb.REASON_CORRUPT_UPDATE


def begun() -> Upload:
    return Upload(header(), CONTEXT, FakeCall())


def under_way(*owners: str) -> tuple[Uploads, dict[str, Upload]]:
    uploads, of = Uploads(), {owner: begun() for owner in owners}
    for owner, push in of.items():
        uploads.begin(owner, push, NOW)
    return uploads, of


def test_an_owner_has_one_push_at_a_time() -> None:
    uploads, of = under_way("alice")
    with pytest.raises(LimitExceeded, match="under way"):
        uploads.begin("alice", begun(), NOW)
    assert of["alice"].call.is_active()
    uploads.check_free("bob", NOW)
    uploads.end("alice", of["alice"])
    uploads.check_free("alice", NOW)


def test_the_end_of_a_push_that_was_replaced_does_not_end_the_new_one() -> None:
    uploads, _ = under_way("alice")
    uploads.end("alice", begun())
    with pytest.raises(LimitExceeded):
        uploads.check_free("alice", NOW)


def test_at_the_seal_all_are_cancelled() -> None:
    uploads, of = under_way("alice", "bob")
    uploads.cancel_all()
    assert [push.call.is_active() for push in of.values()] == [False, False]


def test_a_push_that_is_over_is_not_cancelled_at_the_seal() -> None:
    uploads, of = under_way("alice", "bob")
    uploads.end("alice", of["alice"])
    uploads.cancel_all()
    assert [push.call.is_active() for push in of.values()] == [True, False]


def test_a_push_that_was_silent_for_a_moment_is_ended_where_its_owner_pushes_anew() -> None:
    """A connection may be gone that only the owner knows to be gone."""
    uploads, of = under_way("alice")
    of["alice"].heard_at = NOW + 10
    for seconds, is_active in (
        (10, True),
        (10 + SHORT_WAIT_SECONDS - 0.1, True),
        (10 + SHORT_WAIT_SECONDS, False),
    ):
        with pytest.raises(LimitExceeded):
            uploads.check_free("alice", NOW + seconds)
        assert of["alice"].call.is_active() is is_active
    uploads.end("alice", of["alice"])
    uploads.check_free("alice", NOW + 10 + SHORT_WAIT_SECONDS)
