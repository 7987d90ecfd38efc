"""What int8 updates have not said is said later, and only where they were accepted."""

import math
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from cairn.errors import CairnError, Conflict, Unavailable, UpdateRefused
from cairn.model.schema import DTYPES, Schema, TensorSpec
from cairn.model.update_encoding import UpdateLayout, decoded
from cairn.model.validation import BLOCK
from cairn.protocol.messages import JobSpec
from cairn.v1 import round_pb2 as pb
from owner_node.events import Event
from owner_node.invitation import Declined, Invited
from owner_node.receipts import Receipts
from owner_node.records.history import LedgerHistory
from owner_node.training.supervisor import Trained
from owner_node.updates.encoder import Change, encode
from owner_node.updates.error_feedback import ErrorFeedback, Stream
from owner_node.updates.prepare import DisclosureRules
from owner_node.upload import Uploader
from tests.unit.owner_node import test_policy
from tests.unit.owner_node.test_policy import MANIFEST

Floats = NDArray[np.float64]
JOB = replace(test_policy.JOB, schema=Schema.of([TensorSpec("w", "F32", (1, 2))]))
INT8 = pb.ENCODING_INT8_DELTAS


def stream_of(dtype: str, count: int, encoding: "pb.Encoding" = INT8, job: str = "j") -> Stream:
    return Stream("t", job, UpdateLayout(Schema.of([TensorSpec("w", dtype, (1, count))]), encoding))


def said(layout: UpdateLayout, payload: memoryview) -> Floats:
    (part,) = layout.segments
    scratch = np.empty(BLOCK)
    blocks = [decoded(part, payload, block, scratch).copy() for block in part.run.blocks()]
    return np.concatenate(blocks)


def accept(
    residuals: ErrorFeedback, stream: Stream, delta: NDArray[Any], factor: float = 1.0
) -> Floats:
    """A round whose update is accepted; returns what it said."""
    base = np.zeros_like(delta).tobytes()
    change = Change(base, delta.tobytes(), residuals.of(stream), factor)
    wire = residuals.wire(stream.layout)
    encode(stream.layout, change, wire)
    residuals.drop(stream)
    residuals.accepted(stream, change, wire)
    return said(stream.layout, wire)


def left(residuals: ErrorFeedback, stream: Stream) -> Floats:
    (values,) = residuals.of(stream).values()
    return values.astype(np.float64)


@given(seed=st.integers(0, 1 << 32), count=st.integers(2, 600), rounds=st.integers(1, 12))
@settings(deadline=None)
def test_all_that_was_sent_and_the_last_residual_are_all_that_was_to_be_sent(
    seed: int, count: int, rounds: int
) -> None:
    """Exactly: the numbers are chosen so that binary64 and binary32 hold every step of it."""
    random, residuals, stream = (
        np.random.default_rng(seed),
        ErrorFeedback(),
        stream_of("F32", count),
    )
    sums, wanted = np.zeros(count), np.zeros(count)
    for _ in range(rounds):
        delta = (random.integers(-(1 << 10), 1 << 10, count) / (1 << 10)).astype(np.float32)
        delta[::256] = 127 / 64  # so that the scale is 1/64 in every round
        sums += accept(residuals, stream, delta)
        wanted += delta
        assert np.array_equal(sums + left(residuals, stream), wanted)
        assert np.abs(sums - wanted).max() <= 1 / 128


@pytest.mark.parametrize("dtype", ["F32", "F64"])
def test_any_numbers_add_up_to_within_the_rounding_of_the_residuals(dtype: str) -> None:
    random, residuals = np.random.default_rng(5), ErrorFeedback()
    count, rounds = BLOCK + 300, 20
    stream = stream_of(dtype, count)
    sums, wanted, rounding = np.zeros(count), np.zeros(count), np.zeros(count)
    for _ in range(rounds):
        delta = (random.standard_normal(count) * random.random()).astype(DTYPES[dtype])
        sums += accept(residuals, stream, delta)
        wanted += delta
        rounding += np.abs(left(residuals, stream)) * 2.0**-24 + 1e-14
    assert (np.abs(sums + left(residuals, stream) - wanted) <= rounding).all()


def test_what_is_too_small_for_one_update_is_said_by_several() -> None:
    delta = np.array([127.0, 0.3], np.float32)
    residuals, stream = ErrorFeedback(), stream_of("F32", 2)
    assert said_in(residuals, stream, delta, rounds=10) == [0, 1, 0, 0, 1, 0, 0, 0, 1, 0]
    forgetful = [accept(ErrorFeedback(), stream, delta)[1] for _ in range(10)]
    assert forgetful == [0.0] * 10  # without what is kept it would never be said


def said_in(
    residuals: ErrorFeedback, stream: Stream, delta: NDArray[np.float32], *, rounds: int
) -> list[float]:
    return [float(accept(residuals, stream, delta)[1]) for _ in range(rounds)]


def test_what_a_plain_delta_rounds_off_is_said_later_too() -> None:
    """A binary64 tensor of one dimension travels in binary32, which has 1 + 2**-24 as 1."""
    layout = UpdateLayout(Schema.of([TensorSpec("b", "F64", (1,))]), INT8)
    residuals, stream = ErrorFeedback(), Stream("t", "j", layout)
    delta = np.array([1 + 2**-24])
    assert [float(accept(residuals, stream, delta)[0]) for _ in range(2)] == [1, 1 + 2**-23]
    assert left(residuals, stream).tolist() == [0.0]


def test_what_was_clipped_off_is_not_sent_later() -> None:
    residuals, stream = ErrorFeedback(), stream_of("F32", 2)
    assert accept(residuals, stream, np.array([127, 0], np.float32), factor=0.5)[0] == 63.5
    assert left(residuals, stream).tolist() == [0.0, 0.0]


@pytest.mark.parametrize(
    "other",
    [
        stream_of("F32", 2, job="another"),
        stream_of("F32", 3),
        stream_of("F64", 2),
        stream_of("F32", 2, pb.ENCODING_BF16_DELTAS),
    ],
)
def test_what_is_kept_is_dropped_where_job_model_or_encoding_change(other: Stream) -> None:
    residuals, stream = ErrorFeedback(), stream_of("F32", 2)
    accept(residuals, stream, np.array([127, 0.3], np.float32))
    assert left(residuals, stream).any()
    assert residuals.of(other) == {}
    assert residuals.of(stream) == {}


def test_tasks_do_not_share_what_is_kept() -> None:
    residuals, stream = ErrorFeedback(), stream_of("F32", 2)
    accept(residuals, stream, np.array([127, 0.3], np.float32))
    assert residuals.of(replace(stream, task="another")) == {}
    assert left(residuals, stream).any()


def test_nothing_is_kept_of_bfloat16() -> None:
    residuals, stream = ErrorFeedback(), stream_of("F32", 2, pb.ENCODING_BF16_DELTAS)
    accept(residuals, stream, np.array([1, 0.3], np.float32))
    assert residuals.of(stream) == {}


def test_updates_of_one_size_are_encoded_in_the_same_memory() -> None:
    residuals = ErrorFeedback()
    first = residuals.wire(stream_of("F32", 1000).layout)
    first[0] = 7
    assert residuals.wire(stream_of("F32", 1000).layout)[0] == 7
    assert len(residuals.wire(stream_of("F32", 2000).layout)) == 2000 + 4 * 8


class Aggregator:
    """Answers each push as the test has said, and keeps what was pushed."""

    def __init__(self, answers: Sequence[Exception | None]) -> None:
        self.answers = list(answers)
        self.pushed: list[tuple[bytes, bytes]] = []

    def submit(
        self, _header: Any, payload: memoryview, pushed: Any, _seconds: float, commits: Any
    ) -> pb.Signed:
        commits()
        self.pushed.append((bytes(payload), pushed.payload_digest))
        answer = self.answers.pop(0)
        if answer is not None:
            raise answer
        return pb.Signed()

    def receipt(self, _digest: bytes, _pushed: Any) -> None:
        """There is none."""

    def join(self, _digest: bytes) -> None:
        """It may."""


class NotKept:
    """A disk that keeps nothing."""

    def writer(self, _digest: bytes) -> MagicMock:
        return MagicMock()

    def remove(self, _digest: bytes) -> None:
        """Nothing is there."""


class Ledger:
    def __init__(self) -> None:
        self.entries: list[tuple[str, dict[str, Any]]] = []
        self.past = LedgerHistory()

    def record(self, kind: str, facts: dict[str, Any]) -> None:
        self.entries.append((kind, facts))


def ignored(_event: Event) -> None:
    """Nobody watches this owner."""


class Owner:
    """Pushes an update of [127, 0.3] from a base of zeros, round after round."""

    def __init__(self, *answers: Exception | None, clip: float | None = None) -> None:
        self.aggregator, self.ledger = Aggregator(answers), Ledger()
        self.stopping = threading.Event()
        aggregator: Any = self.aggregator
        ledger: Any = self.ledger
        rules = {"tumours": DisclosureRules(clip=clip)}
        kept: Any = NotKept()
        receipts = Receipts(aggregator, ledger, ignored)
        whats = (aggregator, ledger, kept, receipts, rules)
        self.uploader = Uploader(*whats, lambda: "sha256:00", self.stopping, ignored)
        self.update = np.array([127, 0.3], np.float32)

    def push(self, encoding: "pb.Encoding" = INT8, job: JobSpec = JOB) -> None:
        invited = Invited(replace(MANIFEST, encoding=encoding), b"m" * 32, job)
        trained = Trained(memoryview(bytearray(self.update.tobytes())), 5, {})
        base = memoryview(bytes(8))
        self.uploader.push(invited, base, trained, time.monotonic() + 30, lambda: None)

    def said(self) -> list[list[float]]:
        layout = UpdateLayout(JOB.schema, INT8)
        return [said(layout, memoryview(payload)).tolist() for payload, _ in self.aggregator.pushed]


def test_an_accepted_update_leaves_its_remainder_to_the_next() -> None:
    owner = Owner(None, None)
    owner.push()
    owner.push()
    assert owner.said() == [[127, 0], [127, 1]]


@pytest.mark.parametrize("refusal", [UpdateRefused("no"), Conflict("another")])
def test_a_refused_update_changes_nothing_of_what_is_to_be_said(refusal: CairnError) -> None:
    owner = Owner(None, refusal, None)
    for _ in range(3):
        owner.push()
    assert owner.said() == [[127, 0], [127, 1], [127, 1]]


def test_an_update_that_is_pushed_again_says_the_same() -> None:
    owner = Owner(None, Unavailable("broke off"), None, None)
    for _ in range(3):
        owner.push()
    assert owner.said() == [[127, 0], [127, 1], [127, 1], [127, 0]]
    assert owner.aggregator.pushed[1] == owner.aggregator.pushed[2]


def test_what_may_or_may_not_have_been_said_is_not_said_twice() -> None:
    """An update of 0.3 more than was said is lost: to say it once more could be once too often."""
    owner = Owner(None, None, Unavailable("gone"))
    owner.push()
    owner.stopping.set()
    owner.aggregator.answers = [Unavailable("gone")]
    with pytest.raises(CairnError):
        owner.push()
    owner.stopping.clear()
    owner.aggregator.answers = [None]
    owner.push()
    assert owner.said()[-1] == [127, 0]


def test_an_update_that_is_not_finite_is_declined_and_nothing_is_lost() -> None:
    owner = Owner(None, None)
    owner.push()
    owner.update[0] = np.nan
    with pytest.raises(Declined, match="after training the tensor w has a change") as declined:
        owner.push()
    assert declined.value.reason == pb.REASON_NON_FINITE
    owner.update[0] = 127
    owner.push()
    assert owner.said() == [[127, 0], [127, 1]]


def test_what_was_to_be_said_is_clipped_too() -> None:
    owner = Owner(None, None, clip=127.0)
    owner.push()
    owner.push()
    assert [facts["clipped"] for kind, facts in owner.ledger.entries if kind == "sent"] == [
        True,
        True,
    ]
    for update in owner.said():
        assert math.hypot(*update) <= 127 * (1 + 1e-6) + 0.5  # as quantised


@pytest.mark.parametrize(
    ("encoding", "word", "nbytes"),
    [
        (pb.ENCODING_WHOLE, "whole", 8),
        (pb.ENCODING_BF16_DELTAS, "bf16_deltas", 4),
        (INT8, "int8_deltas", 6),
    ],
)
def test_the_ledger_says_how_an_update_travelled_and_how_large_it_was(
    encoding: "pb.Encoding", word: str, nbytes: int
) -> None:
    owner = Owner(None)
    owner.push(encoding)
    kind, facts = owner.ledger.entries[0]
    payload, digest = owner.aggregator.pushed[0]
    assert (kind, facts["encoding"], facts["bytes"]) == ("sent", word, nbytes)
    assert len(payload) == nbytes
    expected = UpdateLayout(JOB.schema, encoding).digest(payload)
    assert facts["payload_digest"] == digest.hex() == expected.hex()


def test_a_whole_update_leaves_from_where_it_was_trained() -> None:
    owner = Owner(None)
    owner.push(pb.ENCODING_WHOLE)
    assert owner.aggregator.pushed[0][0] == owner.update.tobytes()
