"""One update as it arrives."""

import math
import struct

import pytest

from aggregator_node.push import Push, check_header
from cairn.errors import CairnError, InvalidMessage, TooMuch, UpdateRefused
from cairn.messages import Manifest
from cairn.tensors import Schema, TensorSpec
from cairn.v1 import aggregator_pb2
from cairn.v1 import round_pb2 as pb

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
)


def header(**changes: object) -> aggregator_pb2.UpdateHeader:
    values: dict[str, object] = {
        "manifest_digest": bytes(32),
        "base_digest": BASE,
        "examples": 10,
        "total_bytes": 12,
        "metrics": {"loss": 0.5},
    }
    return aggregator_pb2.UpdateHeader(**{**values, **changes})  # type: ignore[arg-type]  # the changes are the test's


def push() -> Push:
    return Push(header(), SCHEMA, lambda: None, now=0.0)


def commit(payload: bytes) -> aggregator_pb2.UpdateCommit:
    return aggregator_pb2.UpdateCommit(payload_digest=SCHEMA.digest(payload))


GOOD = struct.pack("<3f", 1.0, -2.0, 3.5)


def test_a_good_header_is_taken() -> None:
    check_header(header(), MANIFEST, SCHEMA)


@pytest.mark.parametrize(
    ("changes", "error", "reason"),
    [
        ({"base_digest": b"\x01" * 32}, UpdateRefused, pb.REASON_BASE_MISMATCH),
        ({"total_bytes": 13}, InvalidMessage, pb.REASON_UNSPECIFIED),
        ({"total_bytes": 1 << 60}, InvalidMessage, pb.REASON_UNSPECIFIED),
        ({"examples": 0}, UpdateRefused, pb.REASON_EXAMPLES_REFUSED),
        ({"examples": 1 << 31}, UpdateRefused, pb.REASON_EXAMPLES_REFUSED),
        ({"metrics": {"loss": math.nan}}, UpdateRefused, pb.REASON_NON_FINITE),
        ({"metrics": {"loss": -math.inf}}, UpdateRefused, pb.REASON_NON_FINITE),
        ({"metrics": {"": 1.0}}, InvalidMessage, pb.REASON_UNSPECIFIED),
        ({"metrics": {"é" * 33: 1.0}}, InvalidMessage, pb.REASON_UNSPECIFIED),
        ({"metrics": {str(i): 1.0 for i in range(65)}}, InvalidMessage, pb.REASON_UNSPECIFIED),
    ],
)
def test_a_bad_header_is_refused(
    changes: dict[str, object], error: type[CairnError], reason: "pb.Reason"
) -> None:
    with pytest.raises(error) as refusal:
        check_header(header(**changes), MANIFEST, SCHEMA)
    assert refusal.value.reason == reason


@pytest.mark.parametrize("cuts", [[12], [1, 11], [5, 5, 2], [1] * 12])
def test_a_whole_update_is_taken_however_it_is_cut(cuts: list[int]) -> None:
    arriving = push()
    begin = 0
    for length in cuts:
        arriving.write(GOOD[begin : begin + length], now=1.0)
        begin += length
    assert arriving.finish(commit(GOOD), trains=True) == SCHEMA.digest(GOOD)
    assert bytes(arriving.payload) == GOOD


def test_one_byte_more_than_declared_is_refused_when_it_arrives() -> None:
    arriving = push()
    arriving.write(GOOD, now=1.0)
    with pytest.raises(TooMuch):
        arriving.write(b"\x00", now=1.0)


def test_an_empty_chunk_is_refused_because_a_stream_of_them_would_never_end() -> None:
    with pytest.raises(InvalidMessage):
        push().write(b"", now=1.0)


def test_one_byte_less_than_declared_is_no_update() -> None:
    arriving = push()
    arriving.write(GOOD[:-1], now=1.0)
    with pytest.raises(UpdateRefused) as refusal:
        arriving.finish(commit(GOOD), trains=True)
    assert refusal.value.reason == pb.REASON_CORRUPT_UPDATE


def test_a_flipped_bit_is_found() -> None:
    arriving = push()
    arriving.write(bytes([GOOD[0] ^ 1]) + GOOD[1:], now=1.0)
    with pytest.raises(UpdateRefused) as refusal:
        arriving.finish(commit(GOOD), trains=True)
    assert refusal.value.reason == pb.REASON_CORRUPT_UPDATE


@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_finite_is_refused_wherever_it_stands(place: int, value: float) -> None:
    values = [1.0, 2.0, 3.0]
    values[place] = value
    payload = struct.pack("<3f", *values)
    arriving = push()
    arriving.write(payload, now=1.0)
    with pytest.raises(UpdateRefused) as refusal:
        arriving.finish(commit(payload), trains=True)
    assert refusal.value.reason == pb.REASON_NON_FINITE


def test_an_evaluation_carries_no_tensors() -> None:
    arriving = Push(header(total_bytes=0), SCHEMA, lambda: None, now=0.0)
    assert arriving.finish(aggregator_pb2.UpdateCommit(), trains=False) == b""
    with pytest.raises(InvalidMessage):
        arriving.finish(commit(GOOD), trains=False)
