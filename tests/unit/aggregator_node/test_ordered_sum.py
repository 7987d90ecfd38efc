"""Whatever order updates arrive in, they are added in the order of their owners' names."""

import itertools
import random
import struct

import pytest

from aggregator_node.ordered_sum import OrderedSum
from cairn.tensors import Schema, TensorSpec

SCHEMA = Schema.of([TensorSpec("w", "F64", (64,))])
OWNERS = ["alice", "bob", "carol", "dora"]


def updates() -> dict[str, bytes]:
    numbers = random.Random(7)
    return {
        owner: struct.pack(
            "<64d", *(numbers.gauss(0, 1) * 10 ** numbers.randint(-9, 9) for _ in range(64))
        )
        for owner in OWNERS
    }


def plain_mean(order: list[str]) -> bytes:
    """Sum one after the other in plain Python floats, which are binary64."""
    pushed = {owner: struct.unpack("<64d", payload) for owner, payload in updates().items()}
    sums = list(pushed[order[0]])
    for owner in order[1:]:
        sums = [a + b for a, b in zip(sums, pushed[owner], strict=True)]
    return struct.pack("<64d", *(total / len(order) for total in sums))


def test_every_order_of_arrival_gives_the_sum_in_the_order_of_names() -> None:
    pushed = updates()
    expected = plain_mean(OWNERS)
    assert expected != plain_mean(OWNERS[::-1])  # else the order would not show
    for arrival in itertools.permutations(OWNERS):
        total = OrderedSum(SCHEMA, OWNERS)
        for owner in arrival:
            total.add(owner, bytearray(pushed[owner]), 1)
        assert bytes(total.result(4)) == expected


def test_owners_that_do_not_come_are_passed_over() -> None:
    pushed = updates()
    expected = plain_mean(["alice", "carol", "dora"])
    for skip_first in (True, False):
        total = OrderedSum(SCHEMA, OWNERS)
        if skip_first:
            total.skip("bob")
        for owner in ("dora", "carol", "alice"):
            total.add(owner, bytearray(pushed[owner]), 1)
        assert bytes(total.result(3)) == expected


def test_an_update_whose_turn_has_come_is_not_kept() -> None:
    total = OrderedSum(SCHEMA, OWNERS)
    total.add("alice", bytearray(SCHEMA.total_bytes), 1)
    total.add("carol", bytearray(SCHEMA.total_bytes), 1)
    assert list(total._waiting) == ["carol"]
    total.skip("bob")
    assert list(total._waiting) == []


def test_an_average_of_another_number_than_is_counted_is_never_made() -> None:
    total = OrderedSum(SCHEMA, OWNERS)
    total.add("alice", bytearray(SCHEMA.total_bytes), 1)
    with pytest.raises(AssertionError, match="1 updates were added where 2 are counted"):
        total.result(2)


def test_an_owner_that_was_passed_over_cannot_be_added_afterwards() -> None:
    total = OrderedSum(SCHEMA, OWNERS)
    total.skip("bob")
    with pytest.raises(AssertionError, match="bob"):
        total.add("bob", bytearray(SCHEMA.total_bytes), 1)
