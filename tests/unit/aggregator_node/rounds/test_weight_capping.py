"""What is added of the accepted updates, when, and what is left of those that were held back."""

from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from aggregator_node import event_log
from aggregator_node.aggregation.weight_caps import LargestShare
from aggregator_node.aggregation.workspace import MemoryBudget, Workspace
from aggregator_node.rounds.upload import RoundContext, Upload
from aggregator_node.rounds.weight_capping import WeightCapping
from cairn.errors import Unavailable
from cairn.model.schema import DTYPES, Schema, TensorSpec
from cairn.model.validation import Bounds
from cairn.protocol.limits import MAX_EXAMPLES
from cairn.v1 import aggregator_pb2
from cairn.v1 import round_pb2 as pb
from tests.unit.aggregator_node.aggregation.test_workspace import COHORT, context
from tests.unit.aggregator_node.rounds.calls import FakeCall

SCHEMA = Schema.of([TensorSpec("a", "F64", (2,)), TensorSpec("b", "I64", (1,))])
SHARES = (0.5, 0.4, 0.25, 0.1)
weights = st.lists(
    st.one_of(st.integers(1, 9), st.integers(1, MAX_EXAMPLES), st.just(MAX_EXAMPLES)),
    min_size=2,
    max_size=6,
)


def round_of(schema: Schema, owners: int, share: float = 0.5) -> RoundContext:
    return replace(context(schema, owners, most=MAX_EXAMPLES, share=share), bounds=Bounds())


class Sums:
    """A round's sums, and the uploads of owners whose weights are given."""

    def __init__(self, of: RoundContext) -> None:
        self.context = of
        self.memory = MemoryBudget(1 << 30, 1)
        self.workspace: Workspace = self.memory.allocate("model-owner", of.size, 0)
        self.capping = WeightCapping(of, event_log.write)
        self.kept: dict[str, memoryview] = {}

    def push(self, owner: str, payload: bytes, weight: int) -> None:
        header = aggregator_pb2.UpdateHeader(examples=weight, total_bytes=len(payload))
        with self.workspace.buffers.borrow(owner, lambda: False) as buffer:
            push = Upload(header, self.context, FakeCall())
            push.keep_in(buffer, 0.0)
            buffer[:] = payload
            self.kept[owner] = buffer
            assert self.capping.take(owner, push, self.workspace) == pb.REASON_UNSPECIFIED

    def mean(self) -> bytes:
        self.capping.finish(self.workspace)
        return b"".join(bytes(piece) for piece in self.workspace.rule.result_blocks())


def mean_of(schema: Schema, updates: Sequence[bytes], by: Sequence[int], share: float) -> bytes:
    """The mean where everything is known from the beginning."""
    cap = LargestShare(share).cap(by)
    sums = Sums(context(schema, len(by)))
    for update, weight in zip(updates, by, strict=True):
        mean = sums.workspace.rule
        header = aggregator_pb2.UpdateHeader(examples=1, total_bytes=len(update))
        push = Upload(header, sums.context, FakeCall())
        push.keep_in(memoryview(bytearray(update)), 0.0)
        mean.add_blocks(push.reading(), min(weight, cap))
    return b"".join(bytes(piece) for piece in sums.workspace.rule.result_blocks())


@example(by=[5, 3], share=0.5, seed=0, order="as drawn")
@given(
    by=weights,
    share=st.sampled_from(SHARES),
    seed=st.integers(0, 99),
    order=st.sampled_from(["as drawn", "lightest first", "heaviest first"]),
)
def test_what_is_released_is_the_mean_of_the_capped_weights_in_every_order(
    by: list[int], share: float, seed: int, order: str
) -> None:
    generator = np.random.default_rng(seed)
    updates = [
        generator.integers(-(2**40), 2**40, 1).tobytes() + generator.normal(0, 1, 2).tobytes()
        for _ in by
    ]
    numbers = list(range(len(by)))
    if order != "as drawn":
        numbers.sort(key=by.__getitem__, reverse=order == "heaviest first")
    sums = Sums(round_of(SCHEMA, len(by), share))
    for number in numbers:
        sums.push(COHORT[number], updates[number], by[number])
    assert sums.mean() == mean_of(SCHEMA, updates, by, share)
    assert sums.workspace.buffers.end()


# The least and the most of each type that the bounds allow.
INTEGERS = {
    "BOOL": (0, 1),
    "U8": (0, 255),
    "I8": (-128, 127),
    "I16": (-(2**15), 2**15 - 1),
    "I32": (-(2**31), 2**31 - 1),
    "I64": (-(2**53), 2**53),
}
NUMBERS = {
    "F16": (-6e4, 6e4),
    "BF16": (-1e9, 1e9),
    "F32": (-1e9, 1e9),
    "F64": (-1e9, 1e9),
}


@pytest.mark.parametrize("dtype", sorted(DTYPES))
@given(data=st.data())
def test_no_element_of_any_type_follows_one_owner_whatever_the_weights_are(
    dtype: str, data: st.DataObject
) -> None:
    """Whatever one owner says, the others together move the mean below it and above it."""
    of = data.draw(st.lists(st.integers(1, MAX_EXAMPLES), min_size=3, max_size=6))
    one, share = data.draw(st.integers(0, len(of) - 1)), data.draw(st.sampled_from(SHARES))
    low, high = (NUMBERS | INTEGERS)[dtype]
    drawn = st.floats(low / 2, high / 2) if dtype in NUMBERS else st.integers(*INTEGERS[dtype])
    kind = DTYPES[dtype]
    value = np.array(data.draw(drawn)).astype(kind)
    schema = Schema.of([TensorSpec("t", dtype, ())])

    def released(others: float) -> float:
        sums = Sums(round_of(schema, len(of), share))
        for number, weight in enumerate(of):
            said = value if number == one else np.array(others).astype(kind)
            sums.push(COHORT[number], said.tobytes(), weight)
        return float(np.frombuffer(sums.mean(), kind)[0])

    assert value == low or released(low) < float(value)
    assert value == high or released(high) > float(value)


@given(by=weights.filter(lambda by: len(by) > 2), one=st.integers(0, 5))
def test_nobody_has_a_veto_in_a_mean_of_bools(by: list[int], one: int) -> None:
    schema = Schema.of([TensorSpec("t", "BOOL", ())])
    for says in (False, True):
        sums = Sums(round_of(schema, len(by)))
        for number, weight in enumerate(by):
            said = says if number == one % len(by) else not says
            sums.push(COHORT[number], bytes([said]), weight)
        assert sums.mean() == bytes([not says])


def whole(value: int) -> bytes:
    return np.full(1, value, "<i8").tobytes() + np.full(2, value, "<f8").tobytes()


def test_a_heavier_update_takes_the_place_of_the_one_that_is_held_back() -> None:
    sums = Sums(round_of(SCHEMA, 4))
    before = None
    for owner, weight in zip(COHORT, (1, 10, 100, 1000), strict=False):
        sums.push(owner, whole(weight), weight)
        assert bytes(sums.kept[owner]) == whole(weight)
        if before is not None:  # it is in the sums by now, and its memory overwritten
            assert bytes(sums.kept[before]) == bytes(len(whole(0)))
        before = owner
    expected = Fraction(1 + 100 + 100 * 100 + 1000 * 110, 1 + 10 + 100 + 110)
    assert np.frombuffer(sums.mean(), "<f8")[1] == float(expected)
    assert bytes(sums.kept[COHORT[3]]) == bytes(len(whole(0)))


def test_an_update_whose_weight_is_settled_by_the_others_is_held_back_no_longer() -> None:
    sums = Sums(round_of(SCHEMA, 5))
    for owner, weight in zip(COHORT, (124, 98, 73), strict=False):
        sums.push(owner, whole(weight), weight)
    assert [bytes(buffer) for buffer in sums.kept.values()] == [bytes(len(whole(0)))] * 3


def test_a_round_that_is_aborted_leaves_nothing_of_what_was_held_back() -> None:
    sums = Sums(round_of(SCHEMA, 4))
    sums.push("owner0000", whole(7), 1000)
    assert bytes(sums.kept["owner0000"]) == whole(7)
    sums.capping.forget()
    sums.memory.give_back(sums.workspace)
    assert bytes(sums.kept["owner0000"]) == bytes(len(whole(0)))


def test_sums_that_have_no_room_end_the_round_when_it_is_sealed_at_the_latest() -> None:
    """The one that is held back is added then, and its buffer comes back all the same."""
    schema = Schema.of([TensorSpec("t", "F32", (1 << 19,))])
    sums = Sums(round_of(schema, 3))
    sums.memory._grow(Sums(round_of(schema, 3)).workspace, (1 << 30) - sums.workspace.nbytes)
    values = zip(COHORT, (0.9e9, 1.1e-3, 1.1e-3), (1000, 1, 1), strict=False)
    for owner, value, weight in values:
        sums.push(owner, np.full(1 << 19, value, "<f4").tobytes(), weight)
    with pytest.raises(Unavailable, match="memory_megabytes") as failure:
        sums.mean()
    assert failure.value.reason == pb.REASON_TOO_MUCH
    assert sums.workspace.buffers.end()
