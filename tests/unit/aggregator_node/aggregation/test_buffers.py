"""The line for the memory of updates under way."""

import threading
import tracemalloc
from collections.abc import Iterator

import pytest

from aggregator_node.aggregation.buffers import BufferPool
from cairn.errors import Unavailable
from tests.scenarios.processes import until

LONG = 30.0
NBYTES = 64


class Owner:
    """An owner that asks for a buffer in a thread of its own, and keeps it until it is told."""

    def __init__(self, buffers: BufferPool, name: str) -> None:
        self.name = name
        self.is_over = False
        self.refused = False
        self.has = threading.Event()
        self.lets_go = threading.Event()
        self.order: list[str] = []
        self._buffers = buffers
        self.thread = threading.Thread(target=self._take, daemon=True)

    def asks(self) -> "Owner":
        """Ask, and return when it stands in line or has a buffer."""
        self.thread.start()
        place = self._buffers.place
        until(lambda: self.has.is_set() or place(self.name), f"{self.name} is in line")
        return self

    def ends(self) -> None:
        self.lets_go.set()
        self.thread.join(LONG)
        assert not self.thread.is_alive()

    def _take(self) -> None:
        try:
            with self._buffers.borrow(self.name, lambda: self.is_over) as self.buffer:
                self.order.append(self.name)
                self.has.set()
                assert self.lets_go.wait(LONG)
        except Unavailable:
            self.refused = True


class Line:
    """Buffers, and owners that ask for them."""

    def __init__(self) -> None:
        self.owners: list[Owner] = []

    def asking(self, buffers: BufferPool, *names: str) -> list[Owner]:
        """Let the owners ask, one after the other."""
        came = []
        for name in names:
            owner = Owner(buffers, name)
            self.owners.append(owner)
            came.append(owner.asks())
        return came


@pytest.fixture
def line() -> Iterator[Line]:
    line = Line()
    yield line
    for owner in line.owners:
        owner.ends()


def places(buffers: BufferPool, *names: str) -> list[int]:
    return [buffers.place(name) for name in names]


def test_as_many_have_a_buffer_as_there_are_and_the_others_stand_in_line(line: Line) -> None:
    buffers = BufferPool(2, NBYTES)
    alice, bob, carol, dave = line.asking(buffers, "alice", "bob", "carol", "dave")
    assert [owner.has.is_set() for owner in (alice, bob, carol, dave)] == [True, True, False, False]
    assert places(buffers, "alice", "bob", "carol", "dave", "erin") == [0, 0, 1, 2, 0]
    bob.ends()
    assert carol.has.wait(LONG)
    assert places(buffers, "carol", "dave") == [0, 1]
    assert not dave.has.is_set()


def test_those_in_line_are_served_in_the_order_in_which_they_came(line: Line) -> None:
    buffers = BufferPool(1, NBYTES)
    names = ["first", "e", "d", "a", "c", "b"]
    owners = line.asking(buffers, *names)
    assert places(buffers, *names) == [0, 1, 2, 3, 4, 5]
    for number, owner in enumerate(owners):
        assert owner.has.wait(LONG)
        assert [other.has.is_set() for other in owners] == [n <= number for n in range(len(owners))]
        owner.ends()
    assert places(buffers, *names) == [0] * 6


def test_two_owners_never_have_the_same_memory(line: Line) -> None:
    buffers = BufferPool(3, NBYTES)
    owners = line.asking(buffers, "alice", "bob", "carol")
    for number, owner in enumerate(owners, start=1):
        owner.buffer[:] = bytes([number]) * NBYTES
    assert [bytes(o.buffer) for o in owners] == [bytes([n]) * NBYTES for n in (1, 2, 3)]


def test_who_breaks_off_leaves_the_line_and_those_behind_move_up(line: Line) -> None:
    buffers = BufferPool(1, NBYTES)
    alice, bob, carol, dave = line.asking(buffers, "alice", "bob", "carol", "dave")
    for leaving, left in ((carol, [0, 1, 0, 2]), (bob, [0, 0, 0, 1])):
        leaving.is_over = True
        buffers.wake()
        leaving.thread.join(LONG)
        assert leaving.refused
        assert places(buffers, "alice", "bob", "carol", "dave") == left
    assert not dave.has.is_set()
    alice.ends()
    assert dave.has.wait(LONG)
    assert not alice.refused


def test_who_has_a_buffer_keeps_it_whatever_is_over(line: Line) -> None:
    buffers = BufferPool(1, NBYTES)
    alice, bob = line.asking(buffers, "alice", "bob")
    alice.is_over = True
    buffers.wake()
    assert places(buffers, "alice", "bob") == [0, 1]
    bob.is_over = True
    buffers.wake()
    bob.thread.join(LONG)
    assert (alice.refused, bob.refused) == (False, True)


def test_who_comes_when_it_is_over_gets_no_buffer_although_one_is_free() -> None:
    """Its bytes would stay behind in memory that was erased already, or is another round's."""
    buffers = BufferPool(1, NBYTES)
    with pytest.raises(Unavailable), buffers.borrow("alice", lambda: True):
        pytest.fail("it has a buffer")
    assert places(buffers, "alice") == [0]
    assert buffers.end()


def test_a_push_that_fails_gives_its_buffer_back() -> None:
    buffers = BufferPool(1, NBYTES)
    for _ in range(3):
        with pytest.raises(OSError, match="broken"), buffers.borrow("alice", lambda: False):
            raise OSError("broken")
    assert buffers.end()


def test_who_broke_off_may_come_again(line: Line) -> None:
    buffers = BufferPool(1, NBYTES)
    alice, bob, _carol = line.asking(buffers, "alice", "bob", "carol")
    bob.is_over = True
    buffers.wake()
    bob.thread.join(LONG)
    (again,) = line.asking(buffers, "bob")
    assert places(buffers, "carol", "bob") == [1, 2]
    alice.ends()
    line.owners[2].ends()
    assert again.has.wait(LONG)


def test_erased_buffers_hold_nothing_of_an_update(line: Line) -> None:
    buffers = BufferPool(2, NBYTES)
    owners = line.asking(buffers, "alice", "bob")
    for owner in owners:
        owner.buffer[:] = b"\x55" * NBYTES
        owner.ends()
    assert buffers.end()
    assert [bytes(owner.buffer) for owner in owners] == [bytes(NBYTES)] * 2


def test_a_buffer_that_does_not_come_back_is_told_and_left_alone(
    line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aggregator_node.aggregation.buffers._RETURN_SECONDS", 0)
    buffers = BufferPool(2, NBYTES)
    alice, bob = line.asking(buffers, "alice", "bob")
    alice.buffer[:] = b"\x55" * NBYTES
    bob.buffer[:] = b"\x55" * NBYTES
    alice.ends()
    assert not buffers.end()
    assert (bytes(alice.buffer), bytes(bob.buffer)) == (bytes(NBYTES), b"\x55" * NBYTES)
    bob.ends()
    assert buffers.end()


def test_between_two_rounds_no_buffer_is_lent(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else what a late push writes would stay behind the erasure, or be in the next round's update."""
    monkeypatch.setattr("aggregator_node.aggregation.buffers._RETURN_SECONDS", 0)
    buffers = BufferPool(1, NBYTES)
    (alice,) = line.asking(buffers, "alice")
    bob, carol = line.asking(buffers, "bob", "carol")
    assert not buffers.end()
    for waiting in (bob, carol):
        buffers.wake()
        waiting.thread.join(LONG)
        assert waiting.refused
    alice.ends()
    with pytest.raises(Unavailable), buffers.borrow("dave", lambda: False):
        pytest.fail("it has a buffer")
    assert buffers.end()
    buffers.begin()
    (erin,) = line.asking(buffers, "erin")
    assert erin.has.is_set()
    assert bytes(erin.buffer) == bytes(NBYTES)


def test_the_end_of_a_round_waits_for_a_buffer_that_is_on_its_way_back(line: Line) -> None:
    buffers = BufferPool(1, NBYTES)
    (alice,) = line.asking(buffers, "alice")
    alice.buffer[:] = b"\x55" * NBYTES
    ended: list[bool] = []
    ending = threading.Thread(target=lambda: ended.append(buffers.end()), daemon=True)
    ending.start()
    assert ending.is_alive()
    alice.ends()
    ending.join(LONG)
    assert ended == [True]
    assert bytes(alice.buffer) == bytes(NBYTES)


def test_to_erase_takes_no_memory_of_the_size_of_a_model() -> None:
    """What the aggregator may have is reckoned without it."""
    buffers = BufferPool(1, 16 << 20)
    tracemalloc.start()
    try:
        assert buffers.end()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4 << 20


def test_a_buffer_that_nobody_waits_for_is_erased_at_once(line: Line) -> None:
    buffers = BufferPool(1, NBYTES)
    (alice,) = line.asking(buffers, "alice")
    alice.buffer[:] = b"\x55" * NBYTES
    alice.ends()
    assert bytes(alice.buffer) == bytes(NBYTES)


def test_what_was_left_to_an_owner_that_went_away_is_erased_when_the_round_ends(line: Line) -> None:
    buffers = BufferPool(2, NBYTES)
    alice, bob, carol = line.asking(buffers, "alice", "bob", "carol")
    alice.buffer[:] = bob.buffer[:] = b"\x55" * NBYTES
    carol.is_over = True  # it is not asked before it is woken, by the buffer that comes back
    alice.ends()
    carol.thread.join(LONG)
    assert carol.refused
    bob.ends()
    assert buffers.end()
    assert [bytes(owner.buffer) for owner in (alice, bob)] == [bytes(NBYTES)] * 2


def test_a_kept_buffer_outlives_its_push_and_holds_up_no_line(line: Line) -> None:
    buffers = BufferPool(1, NBYTES, to_keep=1)
    alice, bob = line.asking(buffers, "alice", "bob")
    assert not bob.has.is_set()  # what is there to be kept is lent to nobody
    alice.buffer[:] = b"\x55" * NBYTES
    buffers.keep(alice.buffer)
    assert bob.has.wait(LONG)
    alice.ends()
    (carol,) = line.asking(buffers, "carol")
    assert places(buffers, "carol") == [1]
    bob.ends()
    assert carol.has.wait(LONG)
    assert bytes(alice.buffer) == b"\x55" * NBYTES
    buffers.give_back(alice.buffer)
    assert bytes(alice.buffer) == bytes(NBYTES)
    line.asking(buffers, "dave")
    assert places(buffers, "dave") == [1]


def test_a_buffer_that_is_given_back_during_its_push_is_not_given_back_twice(line: Line) -> None:
    """Else two owners would have the same memory: the round may be done with it before its push is."""
    buffers = BufferPool(1, NBYTES, to_keep=1)
    (alice,) = line.asking(buffers, "alice")
    buffers.keep(alice.buffer)
    buffers.give_back(alice.buffer)
    (bob,) = line.asking(buffers, "bob")
    bob.buffer[:] = b"\x55" * NBYTES
    alice.ends()
    line.asking(buffers, "carol")
    assert places(buffers, "carol") == [1]
    assert bytes(bob.buffer) == b"\x55" * NBYTES


def test_a_round_that_ends_with_kept_buffers_erases_them(line: Line) -> None:
    buffers = BufferPool(2, NBYTES, to_keep=1)
    alice, bob = line.asking(buffers, "alice", "bob")
    for owner in (alice, bob):
        owner.buffer[:] = b"\x55" * NBYTES
    buffers.keep(alice.buffer)
    alice.ends()
    bob.ends()
    assert bytes(alice.buffer) == b"\x55" * NBYTES
    assert buffers.end()
    assert bytes(alice.buffer) == bytes(NBYTES)
