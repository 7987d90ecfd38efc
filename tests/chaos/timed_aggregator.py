"""An aggregator as it is, but for two things: its clocks stand where a test puts them, and faults come when the
test says so. The program of `tests/chaos/puppet.py`: `python timed_aggregator.py CONTROL --config FILE`.

In the directory CONTROL the test writes `clock`, the seconds of the monotonic and of the wall clock, and `armed`, a
failpoint and its action, which becomes `acted` when it acts. The aggregator writes `seen`: the last time of the
monotonic clock at which the open round has looked whether it ends.
"""

import sys
import threading
from contextlib import suppress
from pathlib import Path

from cairn.runtime import failpoints
from cairn.runtime.clock import Clock

CONTROL = Path(sys.argv[1])
_LOOK_SECONDS = 0.01  # how soon a round notices that the clock was put on


class PutClock(Clock):
    """Both clocks stand still until the test puts them on."""

    def monotonic(self) -> float:
        return float((CONTROL / "clock").read_text().split()[0])

    def unix_ms(self) -> int:
        return int(1000 * float((CONTROL / "clock").read_text().split()[1]))


def reach(name: str) -> None:
    """Act where the test has armed this point, once."""
    with suppress(FileNotFoundError):
        armed, action = (CONTROL / "armed").read_text().split("=")
        if armed == name:
            (CONTROL / "armed").rename(CONTROL / "acted")
            failpoints._ACTIONS[action](name)


def let_rounds_follow(clock: Clock) -> None:
    """A round that waits for its next event looks at the clock again and again, because no real time passes."""
    from aggregator_node.rounds.state import Ending, Round

    settle, next_event = Round.settle, Round.next_event

    def settle_and_tell(self: Round, now: float) -> Ending | None:
        ending = settle(self, now)
        beside = CONTROL / f"seen-{threading.get_ident()}"
        beside.write_text(repr(now))
        beside.rename(CONTROL / "seen")
        return ending

    def soon(self: Round) -> float:
        return min(next_event(self), clock.monotonic() + _LOOK_SECONDS)

    Round.settle = settle_and_tell  # type: ignore[method-assign]  # in this process of a test alone
    Round.next_event = soon  # type: ignore[method-assign]  # in this process of a test alone


def main() -> None:
    from aggregator_node import node
    from aggregator_node.cli import main as run
    from aggregator_node.hardening import erase_freed_memory

    erase_freed_memory()  # which starts the process anew, before anything is changed
    clock = PutClock()
    start = node.AggregatorNode
    vars(node)["AggregatorNode"] = lambda settings, _clock, **more: start(settings, clock, **more)
    let_rounds_follow(clock)
    failpoints._reach = reach
    del sys.argv[1]
    run()


if __name__ == "__main__":
    main()
