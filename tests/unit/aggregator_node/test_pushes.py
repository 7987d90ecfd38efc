"""Who is pushing now."""

import pytest

from aggregator_node.pushes import IDLE_SECONDS, Pushes
from cairn.errors import TooMuch


class Pushed:
    """What a push is to `Pushes`."""

    def __init__(self, now: float) -> None:
        self.heard_at = now
        self.cancelled = 0

    def cancel(self) -> None:
        self.cancelled += 1


def under_way(**heard_at: float) -> tuple[Pushes, dict[str, Pushed]]:
    pushes, of = Pushes(), {owner: Pushed(now) for owner, now in heard_at.items()}
    for owner, push in of.items():
        pushes.begin(owner, push)  # type: ignore[arg-type]  # all that it looks at
    return pushes, of


def test_an_owner_has_one_push_at_a_time() -> None:
    pushes, of = under_way(alice=0.0)
    with pytest.raises(TooMuch, match="under way"):
        pushes.begin("alice", Pushed(0.0))  # type: ignore[arg-type]  # all that it looks at
    pushes.check_free("bob")
    pushes.end("alice", of["alice"])  # type: ignore[arg-type]  # all that it looks at
    pushes.check_free("alice")


def test_the_end_of_a_push_that_was_replaced_does_not_end_the_new_one() -> None:
    pushes, _ = under_way(alice=0.0)
    pushes.end("alice", Pushed(0.0))  # type: ignore[arg-type]  # all that it looks at
    with pytest.raises(TooMuch):
        pushes.check_free("alice")


def test_a_push_that_is_silent_for_too_long_is_cancelled_and_no_other() -> None:
    pushes, of = under_way(alice=0.0, bob=5.0)
    assert sorted(pushes.next_idle()) == [IDLE_SECONDS, IDLE_SECONDS + 5.0]
    pushes.end_idle(IDLE_SECONDS - 0.1)
    assert [push.cancelled for push in of.values()] == [0, 0]
    pushes.end_idle(IDLE_SECONDS)
    assert [push.cancelled for push in of.values()] == [1, 0]
    pushes.end_idle(IDLE_SECONDS + 1)  # its end is on the way
    assert [push.cancelled for push in of.values()] == [1, 0]


def test_at_the_seal_all_are_cancelled() -> None:
    pushes, of = under_way(alice=0.0, bob=5.0)
    pushes.cancel_all()
    assert [push.cancelled for push in of.values()] == [1, 1]
