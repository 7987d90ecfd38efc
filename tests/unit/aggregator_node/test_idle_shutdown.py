"""When an aggregator that runs for one job may stop, by a clock that the test sets."""

from aggregator_node.idle_shutdown import IdleShutdown
from cairn.runtime.clock import Clock
from cairn.runtime.timeouts import SHUTDOWN_SECONDS

PATIENCE = 60.0


class SetClock(Clock):
    """A clock that stands where the test puts it."""

    now = 1000.0

    def monotonic(self) -> float:
        return self.now


def test_an_aggregator_whose_jobs_are_complete_stops_soon_after_the_last_call() -> None:
    clock = SetClock()
    idle_shutdown = IdleShutdown(PATIENCE, clock)
    with idle_shutdown.call():
        clock.now += 30
    assert not idle_shutdown.is_due(completed=True)
    clock.now += SHUTDOWN_SECONDS
    assert idle_shutdown.is_due(completed=True)


def test_an_aggregator_whose_jobs_are_not_complete_waits_for_its_coordinator_to_come_back() -> None:
    clock = SetClock()
    idle_shutdown = IdleShutdown(PATIENCE, clock)
    with idle_shutdown.call():
        pass
    clock.now += PATIENCE - 1
    assert not idle_shutdown.is_due(completed=False)
    clock.now += 1
    assert idle_shutdown.is_due(completed=False)


def test_an_aggregator_that_no_coordinator_calls_stops_when_its_patience_has_run_out() -> None:
    clock = SetClock()
    idle_shutdown = IdleShutdown(PATIENCE, clock)
    assert not idle_shutdown.is_due(completed=False)
    clock.now += PATIENCE
    assert idle_shutdown.is_due(completed=False)


def test_a_release_that_is_being_collected_keeps_the_aggregator_up_however_long_it_takes() -> None:
    clock = SetClock()
    idle_shutdown = IdleShutdown(PATIENCE, clock)
    with idle_shutdown.call():
        clock.now += 10 * PATIENCE
        assert not idle_shutdown.is_due(completed=True)
