"""Keeping a place in a round."""

import threading
import time

from cairn.errors import LimitExceeded, Unavailable, WrongState
from owner_node.lease import Lease

LONG = 30.0
SHORT = 0.003
FAR = time.monotonic() + 1e5


def test_a_lease_is_renewed_until_the_work_is_done() -> None:
    renewed = threading.Semaphore(0)
    with Lease(renewed.release, SHORT, FAR, lambda: None, lambda _: None) as lease:
        for _ in range(3):
            assert renewed.acquire(timeout=LONG)
    lease._thread.join(LONG)
    assert not lease._thread.is_alive()


def test_a_round_that_has_ended_is_told_once() -> None:
    told: list[bool] = []
    done = threading.Event()

    def renew() -> None:
        raise WrongState("the round has ended")

    def lost() -> None:
        told.append(True)
        done.set()

    with Lease(renew, SHORT, FAR, lost, lambda _: None) as lease:
        assert done.wait(LONG)
        lease._thread.join(LONG)
    assert told == [True]


def test_a_network_that_fails_does_not_lose_the_lease() -> None:
    tries = threading.Semaphore(0)
    lost = threading.Event()

    def renew() -> None:
        tries.release()
        raise Unavailable("no answer")

    with Lease(renew, SHORT, FAR, lost.set, lambda _: None):
        for _ in range(5):
            assert tries.acquire(timeout=LONG)
    assert not lost.is_set()


def test_asked_to_renew_now_it_does_not_wait_for_the_next_time() -> None:
    renewed = threading.Semaphore(0)
    lost = threading.Event()
    with Lease(renewed.release, 3 * LONG, FAR, lost.set, lambda _: None) as lease:
        lease.renew_now()
        assert renewed.acquire(timeout=LONG / 2)
    lease._thread.join(LONG)
    assert not lease._thread.is_alive()
    assert not lost.is_set()


def test_asked_again_and_again_it_does_not_flood_the_aggregator() -> None:
    renewed = threading.Semaphore(0)
    with Lease(renewed.release, 3 * LONG, FAR, lambda: None, lambda _: None) as lease:
        lease.renew_now()
        assert renewed.acquire(timeout=LONG)
        for _ in range(1000):
            lease.renew_now()
        assert not renewed.acquire(timeout=0.1)


def test_a_full_aggregator_does_not_lose_the_lease() -> None:
    tries = threading.Semaphore(0)
    lost = threading.Event()

    def renew() -> None:
        tries.release()
        raise LimitExceeded("later")

    with Lease(renew, SHORT, FAR, lost.set, lambda _: None):
        for _ in range(3):
            assert tries.acquire(timeout=LONG)
    assert not lost.is_set()


def test_at_the_deadline_the_round_is_over_although_the_aggregator_does_not_answer() -> None:
    lost = threading.Event()
    frozen = threading.Event()

    def renew() -> None:
        frozen.wait(LONG)
        raise Unavailable("no answer")

    with Lease(renew, SHORT, time.monotonic() + 10 * SHORT, lost.set, lambda _: None) as lease:
        assert lost.wait(LONG / 2)
        frozen.set()
        lease._thread.join(LONG)
    assert not lease._thread.is_alive()


def test_work_that_is_done_has_no_deadline_any_more() -> None:
    lost = threading.Event()
    with Lease(lambda: None, LONG, FAR, lost.set, lambda _: None) as lease:
        pass
    lease._timer.join(LONG)
    assert not lease._timer.is_alive()
    assert not lost.is_set()
