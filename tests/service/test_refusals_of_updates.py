"""What the aggregator refuses an owner, and that nothing of a refused update is ever counted."""

import math
import re
import struct
from collections.abc import Iterator
from threading import Event
from typing import Any

import grpc
import ml_dtypes
import numpy as np
import pytest

from cairn.model.schema import DTYPES, Schema, TensorSpec
from cairn.protocol.messages import PROTOCOL
from cairn.protocol.statements import RECEIPT, verified
from cairn.v1 import aggregator_pb2
from cairn.v1 import round_pb2 as pb
from tests.scenarios.processes import until
from tests.service.network import SECONDS, SMALL, Network, OpenRound, refused

INVALID = grpc.StatusCode.INVALID_ARGUMENT
PRECONDITION = grpc.StatusCode.FAILED_PRECONDITION
Part = aggregator_pb2.SubmitUpdateRequest

ZEROS = bytes(16)
ONES = struct.pack("<4f", 1, 1, 1, 1)
SMALLEST_CHUNK = 64 << 10  # of a stream, its last apart
TWO_CHUNKS = Schema.of([TensorSpec("weight", "F32", (2 * SMALLEST_CHUNK // 4,))])


@pytest.fixture
def opened(network: Network) -> OpenRound:
    """A round of alice and bob, which both have joined."""
    opened = network.job().open()
    for owner in ("alice", "bob"):
        opened.join(owner)
    return opened


def commit(digest: bytes) -> Part:
    return Part(commit=aggregator_pb2.UpdateCommit(payload_digest=digest))


def test_an_update_without_joining_is_refused(network: Network) -> None:
    opened = network.job().open()
    with refused(PRECONDITION, "join it before you push"):
        opened.push("alice", ZEROS)


def test_an_update_after_declining_is_refused(network: Network) -> None:
    opened = network.job().open(["alice", "bob", "carol"])
    opened.join("alice")
    opened.decline("alice", pb.REASON_STOPPING)
    with refused(PRECONDITION):
        opened.push("alice", ZEROS)
    with refused(PRECONDITION, "cannot join"):
        opened.join("alice")


def test_a_decline_needs_a_reason_of_the_fixed_list(opened: OpenRound) -> None:
    for reason in (0, 999):
        request = aggregator_pb2.JoinRoundRequest(manifest_digest=opened.digest, protocol=PROTOCOL)
        request.reason = reason  # type: ignore[assignment]  # what no good owner sends
        with refused(INVALID, "reason"):
            opened.job.network.intake("alice").JoinRound(request, timeout=SECONDS)


def test_an_update_of_an_unknown_manifest_is_refused(opened: OpenRound) -> None:
    with refused(grpc.StatusCode.NOT_FOUND, "manifest"):
        opened.push("alice", ZEROS, manifest_digest=bytes(32))
    with refused(INVALID, "manifest_digest"):
        opened.push("alice", ZEROS, manifest_digest=b"short")


def test_an_update_of_another_jobs_manifest_is_refused(network: Network, opened: OpenRound) -> None:
    other = network.job(owners=["bob", "carol"]).open(["bob", "carol"])
    with refused(grpc.StatusCode.PERMISSION_DENIED, "cohort"):
        opened.push("alice", ZEROS, manifest_digest=other.digest)


def test_an_update_trained_from_another_base_is_refused_for_good(opened: OpenRound) -> None:
    with refused(INVALID, "another model", "BASE_MISMATCH"):
        opened.push("alice", ZEROS, base_digest=SMALL.digest(ONES))
    with refused(PRECONDITION):
        opened.push("alice", ZEROS)
    assert opened.ends().exclusions["alice"] == "BASE_MISMATCH"


@pytest.mark.parametrize("total", [0, 15, 17, 2**63])
def test_a_header_that_declares_another_size_is_refused(opened: OpenRound, total: int) -> None:
    with refused(INVALID, "its layout has 16"):
        opened.push("alice", ZEROS, total_bytes=total)


def test_more_bytes_than_declared_are_refused(opened: OpenRound) -> None:
    with refused(grpc.StatusCode.RESOURCE_EXHAUSTED, "more bytes than the 16"):
        opened.push("alice", bytes(17))
    header, chunk, last = opened.parts(ZEROS)
    with refused(grpc.StatusCode.RESOURCE_EXHAUSTED, "more bytes than the 16"):
        opened.submit("alice", [header, chunk, Part(chunk=b"\0"), last])


def test_a_message_larger_than_a_chunk_may_be_is_refused(opened: OpenRound) -> None:
    with refused(grpc.StatusCode.RESOURCE_EXHAUSTED):
        opened.submit("alice", [Part(chunk=bytes(2 << 20))])


def test_fewer_bytes_than_declared_are_refused(opened: OpenRound) -> None:
    header, _, last = opened.parts(ZEROS)
    with refused(INVALID, "a chunk of 15 bytes", "MALFORMED"):
        opened.submit("alice", [header, Part(chunk=bytes(15)), last])
    with refused(INVALID, "ends after 0 of 16 bytes", "CORRUPT_UPDATE"):
        opened.submit("alice", [header, last])


def test_parts_out_of_order_are_refused(opened: OpenRound) -> None:
    header, chunk, last = opened.parts(ZEROS)
    for parts in (
        [chunk, header, last],
        [last],
        [],
        [Part()],
        [header, header, chunk, last],
        [header, chunk],
        [header],
        [header, chunk, Part(), last],
        [header, Part(chunk=b""), chunk, last],
        [header, chunk, last, chunk],
        [header, chunk, last, last],
    ):
        with refused(INVALID):
            opened.submit("alice", parts)
    with refused(grpc.StatusCode.NOT_FOUND):
        opened.receipt("alice")


def test_other_bytes_than_the_committed_digest_are_refused(opened: OpenRound) -> None:
    header, _, last = opened.parts(ZEROS)
    with refused(INVALID, "committed digest", "CORRUPT_UPDATE"):
        opened.submit("alice", [header, Part(chunk=ONES), last])
    for digest in (b"", b"short", bytes(33)):
        with refused(INVALID, "payload_digest"):
            opened.submit("alice", [header, Part(chunk=ZEROS), commit(digest)])


def test_a_corrupt_update_may_be_pushed_again(opened: OpenRound) -> None:
    header, _, last = opened.parts(ZEROS)
    with refused(INVALID, reason="CORRUPT_UPDATE"):
        opened.submit("alice", [header, Part(chunk=ONES), last])
    assert opened.push("alice", ZEROS).type == RECEIPT


NOT_FINITE = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


@pytest.mark.parametrize("value", NOT_FINITE)
@pytest.mark.parametrize("place", ["first", "middle", "last"])
@pytest.mark.parametrize("dtype", ["F16", "BF16", "F32", "F64"])
def test_a_value_that_is_no_number_is_refused_wherever_it_stands(
    network: Network, dtype: str, place: str, value: str
) -> None:
    schema = Schema.of([TensorSpec("a", dtype, (7,)), TensorSpec("b", "I64", (3,))])
    values = np.zeros(7, DTYPES[dtype])
    position = {"first": 0, "middle": 3, "last": 6}[place]
    values[position] = NOT_FINITE[value]
    integers = np.zeros(3, np.int64).tobytes()
    payload = integers + values.tobytes()  # I64 comes first in the canonical order
    opened = network.job(schema=schema).open()
    opened.join("alice")
    with refused(INVALID, "tensor a has a value that is NaN or infinite", "NON_FINITE"):
        opened.push("alice", payload)
    ended = opened.ends()
    assert ended.exclusions["alice"] == "NOT_COUNTED"
    assert ended.reason == "BELOW_FLOOR"


@pytest.mark.parametrize("byte", [2, 255])
def test_a_bool_that_is_neither_0_nor_1_is_refused(network: Network, byte: int) -> None:
    opened = network.job(schema=Schema.of([TensorSpec("mask", "BOOL", (3,))])).open()
    opened.join("alice")
    with refused(INVALID, "mask", "CORRUPT_UPDATE"):
        opened.push("alice", bytes([0, 1, byte]))


@pytest.mark.parametrize("examples", [0, 2**31, 2**40, 2**64 - 1])
def test_an_impossible_number_of_examples_is_refused(opened: OpenRound, examples: int) -> None:
    with refused(INVALID, "examples", "EXAMPLES_REFUSED"):
        opened.push("alice", ZEROS, examples=examples)
    assert opened.ends().exclusions["alice"] == "NOT_COUNTED"


@pytest.mark.parametrize("value", NOT_FINITE.values())
def test_a_metric_that_is_no_number_is_refused(opened: OpenRound, value: float) -> None:
    with refused(INVALID, "metric", "NON_FINITE"):
        opened.push("alice", ZEROS, metrics={"loss": value})


@pytest.mark.parametrize("names", [["x" * 65], [""], [f"m{n}" for n in range(65)], ["é" * 33]])
def test_too_many_or_misnamed_metrics_are_refused(opened: OpenRound, names: list[str]) -> None:
    with refused(INVALID, "metric"):
        opened.push("alice", ZEROS, metrics=dict.fromkeys(names, 1.0))


def test_a_refusal_never_tells_a_value(opened: OpenRound) -> None:
    payload = struct.pack("<4f", 0.123456, math.nan, 0.654321, 42.4242)
    with refused(INVALID, reason="NON_FINITE"):
        opened.push("alice", payload, metrics={"secret": 0.987654})
    # Without the times of its lines, whose digits may be any.
    log = re.sub(r'"timestamp": "[^"]*"', "", opened.job.network.node.output())
    for value in ("0.123", "0.654", "42.4", "0.987"):
        assert value not in log


def test_the_same_update_twice_is_answered_with_the_same_receipt(opened: OpenRound) -> None:
    first = opened.push("alice", ONES, metrics={"loss": 0.5, "accuracy": 1.0})
    assert opened.push("alice", ONES, metrics={"accuracy": 1.0, "loss": 0.5}) == first
    assert opened.receipt("alice") == first


@pytest.mark.parametrize("changes", [{"examples": 2}, {"metrics": {"loss": 1.0}}, {}])
def test_another_update_after_an_accepted_one_is_refused(
    opened: OpenRound, changes: dict[str, Any]
) -> None:
    first = opened.push("alice", ZEROS)
    with refused(grpc.StatusCode.ALREADY_EXISTS, "another update"):
        opened.push("alice", ZEROS if changes else ONES, **changes)
    assert opened.receipt("alice") == first


def test_an_accepted_update_cannot_be_taken_back(opened: OpenRound) -> None:
    opened.push("alice", ONES)
    with refused(PRECONDITION, "cannot decline"):
        opened.decline("alice", pb.REASON_STOPPING)
    opened.push("bob", ONES)
    assert opened.ends().payload == ONES


def test_of_two_pushes_of_one_owner_at_once_one_is_refused(opened: OpenRound) -> None:
    header, chunk, last = opened.parts(ONES)
    goes_on = Event()

    def slow() -> Iterator[Part]:
        yield header
        goes_on.wait(SECONDS)
        yield chunk
        yield last

    stub = opened.job.network.intake("alice")
    pushes = [stub.SubmitUpdate.future(slow(), timeout=SECONDS) for _ in range(2)]
    until(lambda: any(push.done() for push in pushes), "one is refused")
    pushes.sort(key=lambda push: not push.done())
    with refused(grpc.StatusCode.RESOURCE_EXHAUSTED, "under way"):
        pushes[0].result()
    goes_on.set()
    assert pushes[1].result().receipt == opened.receipt("alice")


def test_streams_without_a_header_do_not_keep_others_from_pushing(opened: OpenRound) -> None:
    opened.join("alice")
    opened.join("bob")
    goes_on = Event()

    def silent() -> Iterator[Part]:
        goes_on.wait(SECONDS)
        yield from ()

    stub = opened.job.network.intake("bob")
    pushes = [stub.SubmitUpdate.future(silent(), timeout=SECONDS) for _ in range(12)]
    until(lambda: sum(push.done() for push in pushes) == 8, "all but four are refused")
    held = [push for push in pushes if not push.done()]
    for push in set(pushes) - set(held):
        with refused(grpc.StatusCode.RESOURCE_EXHAUSTED, "4 long calls under way", "TOO_MUCH"):
            push.result()
    opened.push("alice", ONES)
    goes_on.set()
    for push in held:
        with refused(INVALID, "ended before its request had come", "MALFORMED"):
            push.result()


def test_a_half_arrived_update_never_counts(network: Network) -> None:
    opened = network.job(schema=TWO_CHUNKS).open()
    for owner in ("alice", "bob"):
        opened.join(owner)
    header, _, _ = opened.parts(bytes(TWO_CHUNKS.total_bytes))
    begun, breaks_off = Event(), Event()

    def half() -> Iterator[Part]:
        yield header
        yield Part(chunk=bytes(TWO_CHUNKS.total_bytes // 2))
        begun.set()
        breaks_off.wait(SECONDS)

    stub = network.intake("alice")
    under_way = stub.SubmitUpdate.future(half(), timeout=SECONDS)
    assert begun.wait(SECONDS)
    under_way.cancel()
    breaks_off.set()
    opened.push("bob", bytes(TWO_CHUNKS.total_bytes))
    opened.decline("alice", pb.REASON_STOPPING)
    ended = opened.ends()
    assert ended.reason == "BELOW_FLOOR"
    assert not ended.payload


def test_an_update_after_the_round_ended_is_refused(network: Network) -> None:
    opened = network.job().open(["alice", "bob", "carol"])
    for owner in ("alice", "bob", "carol"):
        opened.join(owner)
    opened.decline("carol", pb.REASON_TASK_FAILED)
    receipts = {owner: opened.push(owner, ONES) for owner in ("alice", "bob")}
    opened.ends()
    with refused(PRECONDITION, "the round has ended"):
        opened.push("carol", ONES)
    with refused(PRECONDITION, "the round has ended"):
        opened.join("carol")
    assert opened.receipt("alice") == receipts["alice"] == opened.push("alice", ONES)
    with refused(grpc.StatusCode.ALREADY_EXISTS):
        opened.push("alice", ZEROS)


def test_nobody_gets_another_owners_receipt(opened: OpenRound) -> None:
    opened.push("alice", ONES)
    with refused(grpc.StatusCode.NOT_FOUND, "no update of yours"):
        opened.receipt("bob")
    body = verified(opened.job.network.key, RECEIPT, opened.receipt("alice"))
    assert aggregator_pb2.Receipt.FromString(body).owner == "alice"


def test_an_evaluation_carries_no_tensors(network: Network) -> None:
    job = network.job()
    released = job.run({"alice": ONES, "bob": ONES}).payload
    opened = job.open(base=released, phase=pb.PHASE_EVALUATE)
    opened.join("alice")
    with refused(INVALID, "its layout has 0"):
        opened.push("alice", ONES, total_bytes=16)
    header, last = opened.parts(b"")
    with refused(grpc.StatusCode.RESOURCE_EXHAUSTED):
        opened.submit("alice", [header, Part(chunk=b"\1"), last])
    with refused(INVALID, "no payload digest"):
        opened.submit("alice", [header, commit(bytes(32))])


def test_a_bfloat16_nan_of_any_bit_pattern_is_refused(network: Network) -> None:
    schema = Schema.of([TensorSpec("a", "BF16", (1,))])
    for pattern in (0x7F81, 0xFF81, 0x7FFF, 0xFFC0):
        payload = np.array([pattern], np.uint16).view(ml_dtypes.bfloat16).tobytes()
        opened = network.job(schema=schema).open()
        opened.join("alice")
        with refused(INVALID, reason="NON_FINITE"):
            opened.push("alice", payload)


@pytest.mark.parametrize(("examples", "weight"), [(1, 5), (4, 5), (11, 10), (2**31 - 1, 10)])
def test_an_update_of_fewer_or_more_examples_than_the_job_says_counts_as_these(
    network: Network, examples: int, weight: int
) -> None:
    """Refused, it would tell the coordinator on which side of the bound the owner is."""
    job = network.job(weighting=pb.WEIGHTING_EXAMPLES, examples=(5, 10))
    opened = job.open(["alice", "bob", "carol"])
    for owner in ("alice", "bob", "carol"):
        opened.join(owner)
    opened.push("alice", ONES, examples=examples)
    opened.push("bob", ZEROS, examples=5)
    opened.push("carol", ONES, examples=9)
    ended = opened.ends()
    assert ended.exclusions == {}
    assert ended.payload == struct.pack("<4f", *[(weight + 9) / (weight + 14)] * 4)


@pytest.mark.parametrize(
    ("dtype", "last", "beyond"),
    [
        ("F32", 1e9, 1e9 + 64),
        ("F32", -1e9, -1e9 - 64),
        ("F64", 1e9, np.nextafter(1e9, np.inf)),
        ("BF16", 998244352, 1002438656),
        ("I64", 2**53, 2**53 + 1),
        ("I64", -(2**53), -(2**53) - 1),
    ],
)
def test_a_value_beyond_the_largest_that_is_allowed_is_refused(
    network: Network, dtype: str, last: float, beyond: float
) -> None:
    """1e9 and 2 to the 53rd by default; what is refused once is out of the round."""
    schema = Schema.of([TensorSpec("w", dtype, (3,))])
    opened = network.job(schema=schema).open(["alice", "bob", "carol"])
    payloads = {v: np.array([0, 0, v], DTYPES[dtype]).tobytes() for v in (last, beyond)}
    for owner in ("alice", "bob", "carol"):
        opened.join(owner)
    with refused(INVALID, "tensor w has a value beyond the largest", "MAGNITUDE_REFUSED"):
        opened.push("alice", payloads[beyond])
    opened.push("bob", payloads[last])
    opened.push("carol", payloads[last])
    ended = opened.ends()
    assert ended.exclusions == {"alice": "NOT_COUNTED"}
    assert ended.payload == payloads[last]
