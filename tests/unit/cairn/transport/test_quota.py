"""A caller has so many calls under way, and all together so many; each until it has really ended."""

import pytest

from cairn.errors import LimitExceeded
from cairn.identity.names import NodeName, Role
from cairn.transport.quota import Quota

ALICE, BOB, CAROL = (NodeName("ward", Role.OWNER, name) for name in ("alice", "bob", "carol"))


def test_a_caller_at_its_limit_is_refused_and_no_other() -> None:
    quota = Quota("short", each=2, in_all=10)
    for _ in range(2):
        quota.take(ALICE)
    with pytest.raises(LimitExceeded, match=r"alice .* has 2 short calls under way already"):
        quota.take(ALICE)
    quota.take(BOB)


def test_all_callers_together_have_a_limit_too() -> None:
    quota = Quota("long", each=2, in_all=3)
    quota.take(ALICE)
    quota.take(ALICE)
    place = quota.take(BOB)
    with pytest.raises(LimitExceeded, match="this node has 3 long calls under way already"):
        quota.take(CAROL)
    place.leave()
    place.leave()
    quota.take(CAROL)


def test_a_place_is_free_when_both_the_handler_and_the_call_have_ended() -> None:
    quota = Quota("short", each=1, in_all=10)
    place = quota.take(ALICE)
    place.leave()
    with pytest.raises(LimitExceeded):
        quota.take(ALICE)
    place.leave()
    quota.take(ALICE)
