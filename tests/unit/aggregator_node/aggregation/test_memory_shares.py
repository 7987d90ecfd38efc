"""Who gets the aggregator's memory when coordinators compete for it."""

from hypothesis import given
from hypothesis import strategies as st

from aggregator_node.aggregation.memory_shares import MemoryShares
from cairn.runtime.timeouts import RECONNECT_TIMEOUT_SECONDS

ALL = 120


def holding(**held: int) -> MemoryShares:
    shares = MemoryShares(ALL)
    for coordinator, nbytes in held.items():
        shares.take(coordinator, nbytes)
    return shares


def test_while_nobody_waits_whoever_asks_gets_what_is_free() -> None:
    assert holding().may_take("a", ALL, 0)
    assert holding(a=80).may_take("a", 40, 0)
    assert holding(a=80).may_take("b", 40, 0)
    assert not holding(a=80).may_take("b", 41, 0)


def test_while_one_waits_within_its_share_no_other_gets_more_than_its_own() -> None:
    shares = holding(a=100)
    assert not shares.may_take("b", 60, 0)
    assert not shares.may_take("a", 5, 1)
    shares.give_back("a", 100)
    assert not shares.may_take("a", 61, 2)
    assert shares.may_take("a", 60, 2)
    assert shares.may_take("b", 60, 3)
    assert shares.may_take("a", 61, 4)


def test_one_that_wants_more_than_its_share_holds_nobody_up() -> None:
    shares = holding(a=100)
    assert not shares.may_take("b", 61, 0)
    assert shares.may_take("a", 20, 1)


def test_one_that_asks_no_more_is_waited_for_a_minute_at_the_most() -> None:
    shares = holding(a=100)
    assert not shares.may_take("b", 60, 0)
    assert not shares.may_take("a", 20, RECONNECT_TIMEOUT_SECONDS - 1)
    assert shares.may_take("a", 20, RECONNECT_TIMEOUT_SECONDS)


def test_the_shares_are_those_of_all_that_hold_memory_or_wait_for_it() -> None:
    shares = holding(a=60, b=60)
    assert not shares.may_take("c", 41, 0)  # more than a third, so it waits for nobody's share
    shares.give_back("a", 60)
    assert shares.may_take("a", 60, 1)
    shares.take("a", 60)
    assert not shares.may_take("c", 40, 2)
    shares.give_back("a", 60)
    assert not shares.may_take("a", 60, 3)
    assert shares.may_take("c", 40, 4)


@given(st.lists(st.integers(1, ALL), min_size=1, max_size=12))
def test_one_that_waits_within_its_share_gets_it_before_the_others_have_begun_as_much_again(
    rounds: list[int],
) -> None:
    """The greedy one keeps what it has, and asks for its next round whenever one has ended."""
    shares, held = MemoryShares(ALL), []
    for nbytes in rounds:
        if shares.may_take("greedy", nbytes, 0):
            shares.take("greedy", nbytes)
            held.append(nbytes)
    served = shares.may_take("patient", ALL // 2, 1)
    while held and not served:
        shares.give_back("greedy", ended := held.pop(0))
        if shares.may_take("greedy", ended, 2):
            shares.take("greedy", ended)
            held.append(ended)
            assert sum(held) <= ALL // 2
        served = shares.may_take("patient", ALL // 2, 3)
    assert served
