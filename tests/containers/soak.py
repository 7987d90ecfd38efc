"""Kills containers at random over one long job, and tells what that cost and whether anything grew.

Every 20 to 60 seconds a container is killed and started again. One owner never is. When the time is up, the
kills end and the job must end by itself; then everything is checked as after any fault.
`python -m tests.containers.soak --minutes 30 --seed 1`
"""

import argparse
import secrets
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import click

from tests.chaos.invariants import check, check_nothing_half_written, released_rounds
from tests.chaos.marking import OWNERS, Table
from tests.containers.boxes import Boxes
from tests.containers.soak_report import LEASE_SECONDS, Kill, Sample, findings, report
from tests.scenarios.processes import descendants_of, until

VICTIMS = ("aggregator", "coordinator", "alice", "bob")  # and never carol
PACE_SECONDS = 2.0  # of a training, so that the job outlasts the time
PAUSES_SECONDS = (20.0, 60.0)  # between two kills
DOWN_SECONDS = (0.0, 5.0)
_SAMPLE_SECONDS = 2.0
_LOOK_SECONDS = 0.1
_MOST_ROUNDS_FOR_EACH = (
    10  # trainings of a round that is released: most of those that are killed are joined too
)
_LONGEST_END_SECONDS = 900.0  # for the rounds that are left when the kills end


class LongBoxes(Boxes):
    """Boxes for one job that takes hours, and many restarts."""

    lease_seconds = int(LEASE_SECONDS)
    most_restarts = 100_000
    patience_seconds = _LONGEST_END_SECONDS

    def pace(self, seconds: float) -> None:
        """Have each training take so long."""
        for owner in OWNERS:
            (self.home / "data" / owner / "pace").write_text(str(seconds))


@dataclass
class Soak:
    """What was done and what was seen, in seconds since the beginning."""

    boxes: LongBoxes
    begun: float = field(default_factory=time.monotonic)
    samples: list[Sample] = field(default_factory=list)
    kills: list[Kill] = field(default_factory=list)
    released: list[float] = field(default_factory=list)  # when the line of each round was there

    @property
    def now(self) -> float:
        return time.monotonic() - self.begun

    def look(self) -> bool:
        """Start anew what has ended, and write down what there is to see; returns whether the job is done."""
        done = self.boxes.tend()
        self._observe()
        return done

    def look_until(self, end: float) -> None:
        while self.now < end:
            self.look()
            time.sleep(_LOOK_SECONDS)

    def kill(self, victim: str, down_seconds: float) -> None:
        """Kill a container, and leave it down for so long."""
        at = self.now
        self.boxes.running[victim].kill()
        while self.now < at + down_seconds:
            self._observe()
            time.sleep(_LOOK_SECONDS)
        self.kills.append(Kill(victim, at, self.now))
        self.boxes.tend()
        click.echo(f"{at:6.0f} s: killed {victim}, after {len(self.released)} rounds")

    def _observe(self) -> None:
        history = self.boxes.out / "history.jsonl"
        lines = history.read_bytes().count(b"\n") if history.exists() else 0
        self.released += [self.now] * (lines - len(self.released))
        if not self.samples or self.now - self.samples[-1].at >= _SAMPLE_SECONDS:
            for name, node in self.boxes.running.items():
                with suppress(FileNotFoundError, ProcessLookupError):  # it has ended meanwhile
                    self._sample(name, node.pid)

    def _sample(self, name: str, pid: int) -> None:
        if pid:
            self.samples.append(Sample.of(name, self.now, pid))
            for child in descendants_of(pid):
                self.samples.append(Sample.of(f"{name}, training", self.now, child))


def soak(home: Path, seconds: float, seed: int) -> list[str]:
    """Run it and print its figures; returns what must not have been."""
    rounds = int(seconds / PACE_SECONDS) + 1
    boxes = LongBoxes(home, Table(rows=2 * rounds + 100, secret_floats=1 << 16))
    try:
        with boxes.explained():
            boxes.pace(PACE_SECONDS)
            for owner in OWNERS:
                boxes.edit(
                    owner,
                    "max_failures",
                    f"max_rounds = {_MOST_ROUNDS_FOR_EACH * rounds}\nmax_failures",
                )
            boxes.begin(rounds=rounds)
            done = Soak(boxes)
            _kill_again_and_again(done, seconds, Random(seed))
            boxes.pace(0)
            click.echo(f"{done.now:6.0f} s: no more kills, after {len(done.released)} rounds")
            until(done.look, "the job ends", boxes.patience_seconds)
            click.echo(f"{done.now:6.0f} s: the job has ended")
            counted = released_rounds(boxes)
            click.echo(report(done.samples, done.kills, done.released, counted, OWNERS))
            check(boxes, faultless=None)
            check_nothing_half_written(boxes)
    finally:
        boxes.close()
    return list(findings(done.samples, done.kills, done.released, OWNERS))


def _kill_again_and_again(done: Soak, seconds: float, random: Random) -> None:
    until(lambda: done.look() or done.released, "the first round ends", _LONGEST_END_SECONDS)
    end = done.now + seconds
    while (at := done.now + random.uniform(*PAUSES_SECONDS)) < end:
        done.look_until(at)
        done.kill(random.choice(VICTIMS), random.uniform(*DOWN_SECONDS))
    done.look_until(end)


def main() -> None:
    """Run the soak of the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=secrets.randbelow(1 << 32))
    given = parser.parse_args()
    click.echo(f"seed {given.seed}, {given.minutes:g} minutes of kills")
    with tempfile.TemporaryDirectory() as home:
        found = soak(Path(home), given.minutes * 60, given.seed)
    click.echo("\n".join(["", *(found or ["nothing grew, and no kill cost more than it may"])]))
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
