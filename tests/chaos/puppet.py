"""A real aggregator on loopback, spoken to by gRPC, whose clocks and faults the test has in its hand."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.scenarios.processes import Node, until
from tests.service.network import Network

LEASE_SECONDS = 30
_PROGRAM = Path(__file__).parent / "timed_aggregator.py"
_BEGUN = 1000.0  # of the monotonic clock


class Puppet(Network):
    """Its time passes only by `advance`, and a fault comes where it was armed, once."""

    def __init__(
        self,
        directory: Path,
        *,
        floor: int = 2,
        lease_seconds: int = LEASE_SECONDS,
        **settings: float | str,
    ) -> None:
        self._control = directory / "control"
        self._control.mkdir()
        self.now = _BEGUN
        self._wall = float(int(time.time()))
        self._write_clock()
        super().__init__(directory, floor=floor, lease_seconds=lease_seconds, **settings)

    def advance(self, seconds: float) -> None:
        """Put both clocks on."""
        self.now += seconds
        self._wall += seconds
        self._write_clock()

    def let_round_look(self) -> None:
        """Return when the open round has looked at the clock since it was put on last."""
        until(lambda: self.seen == self.now, "the round looks at the clock")

    def jump(self, seconds: float) -> None:
        """Set the wall clock forward or back, as an administrator would."""
        self._wall += seconds
        self._write_clock()

    @property
    def seen(self) -> float:
        """The last time at which the open round has looked whether it ends."""
        with suppress(FileNotFoundError):
            return float((self._control / "seen").read_text())
        return 0.0

    def arm(self, name: str, action: str) -> None:
        """Have the aggregator meet this fault when it comes to the point."""
        self.disarm()
        self._put("armed", f"{name}={action}")

    def disarm(self) -> None:
        for name in ("armed", "acted"):
            (self._control / name).unlink(missing_ok=True)

    @contextmanager
    def without_faults(self) -> Iterator[None]:
        """Nothing acts inside; what was armed is so again afterwards."""
        armed, aside = self._control / "armed", self._control / "aside"
        with suppress(FileNotFoundError):
            armed.rename(aside)
        yield
        with suppress(FileNotFoundError):
            aside.rename(armed)

    @property
    def is_armed(self) -> bool:
        return (self._control / "armed").exists()

    @property
    def kills(self) -> bool:
        """Whether the fault that came has killed the aggregator."""
        return (self._control / "acted").read_text().endswith("=kill")

    @property
    def has_acted(self) -> bool:
        """Whether the fault that was armed last has come."""
        return (self._control / "acted").exists()

    @property
    def has_ended(self) -> bool:
        return self.node.process.poll() is not None

    def revive(self) -> None:
        """Start the aggregator again where it has ended by itself."""
        if self.has_ended:
            self._hang_up()
            self.node = self._start()

    def await_end(self) -> None:
        until(lambda: self.has_ended, "the aggregator ends")

    def _write_clock(self) -> None:
        self._put("clock", f"{self.now!r} {self._wall!r}")

    def _put(self, name: str, text: str) -> None:
        beside = self._control / f"{name}.new"
        beside.write_text(text)
        beside.rename(self._control / name)

    def _start(self) -> Node:
        log = self.directory / f"{next(self._names)}.log"
        config = self.directory / "aggregator.toml"
        node = Node("aggregator", log, sys.executable, _PROGRAM, self._control, "--config", config)
        node.says("aggregator is ready")
        return node
