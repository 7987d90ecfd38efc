"""Who is pushing now."""

import pytest

from aggregator_node.rounds.uploads import Uploads
from cairn.errors import LimitExceeded
from cairn.runtime.timeouts import SHORT_WAIT_SECONDS

NOW = 1000.0


class Called:
    """The call of a push, as far as `Uploads` looks at it."""

    def __init__(self) -> None:
        self.cancelled = 0

    def cancel(self) -> None:
        self.cancelled += 1


class Pushed:
    """What a push is to `Uploads`."""

    def __init__(self) -> None:
        self.call = Called()


def under_way(*owners: str) -> tuple[Uploads, dict[str, Pushed]]:
    pushes, of = Uploads(), {owner: Pushed() for owner in owners}
    for owner, push in of.items():
        pushes.begin(owner, push, NOW)  # type: ignore[arg-type]  # all that it looks at
    return pushes, of


def test_an_owner_has_one_push_at_a_time() -> None:
    pushes, of = under_way("alice")
    with pytest.raises(LimitExceeded, match="under way"):
        pushes.begin("alice", Pushed(), NOW)  # type: ignore[arg-type]  # all that it looks at
    pushes.check_free("bob", NOW)
    pushes.end("alice", of["alice"])  # type: ignore[arg-type]  # all that it looks at
    pushes.check_free("alice", NOW)


def test_the_end_of_a_push_that_was_replaced_does_not_end_the_new_one() -> None:
    pushes, _ = under_way("alice")
    pushes.end("alice", Pushed())  # type: ignore[arg-type]  # all that it looks at
    with pytest.raises(LimitExceeded):
        pushes.check_free("alice", NOW)


def test_at_the_seal_all_are_cancelled() -> None:
    pushes, of = under_way("alice", "bob")
    pushes.cancel_all()
    assert [push.call.cancelled for push in of.values()] == [1, 1]


def test_a_push_that_is_over_is_not_cancelled_at_the_seal() -> None:
    pushes, of = under_way("alice", "bob")
    pushes.end("alice", of["alice"])  # type: ignore[arg-type]  # all that it looks at
    pushes.cancel_all()
    assert [push.call.cancelled for push in of.values()] == [0, 1]


def test_a_push_that_was_silent_for_a_moment_is_ended_where_its_owner_pushes_anew() -> None:
    """A connection may be gone that only the owner knows to be gone."""
    pushes, of = under_way("alice")
    pushes.heard("alice", of["alice"], NOW + 10)  # type: ignore[arg-type]  # all that it looks at
    for seconds, cancelled in (
        (10, 0),
        (10 + SHORT_WAIT_SECONDS - 0.1, 0),
        (10 + SHORT_WAIT_SECONDS, 1),
    ):
        with pytest.raises(LimitExceeded):
            pushes.check_free("alice", NOW + seconds)
        assert of["alice"].call.cancelled == cancelled
    pushes.end("alice", of["alice"])  # type: ignore[arg-type]  # all that it looks at
    pushes.check_free("alice", NOW + 10 + SHORT_WAIT_SECONDS)
