"""A caller has so many calls under way, and all together so many; each until it has really ended."""

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import pytest

from cairn.errors import LimitExceeded
from cairn.identity.names import NodeName, Role
from cairn.runtime.clock import Clock
from cairn.transport.connections import Connections
from cairn.transport.pools import SHORT_CALLS_OF_ONE_CALLER, Pools
from cairn.transport.quota import Quota, Quotas
from cairn.transport.steps import Call

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


class Context:
    """A call under way on one connection."""

    def peer(self) -> str:
        return "ipv4:192.0.2.1:40000"

    def add_callback(self, _ended: Callable[[], None]) -> bool:
        return True


def test_a_call_beyond_the_quota_is_refused_and_does_not_go_on() -> None:
    quotas = Quotas(Pools(1, 1), Connections(Clock()))
    context: Any = Context()
    under_way = [
        Call("/cairn.v1.IntakeService/JoinRound", context, _node=ALICE)
        for _ in range(SHORT_CALLS_OF_ONE_CALLER + 1)
    ]
    with ExitStack() as stack:
        for call in under_way[:-1]:
            stack.enter_context(quotas.around(call))
        with pytest.raises(LimitExceeded, match="8 short calls under way"):
            stack.enter_context(quotas.around(under_way[-1]))
