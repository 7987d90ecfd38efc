"""What a soak found: what each kill cost, and whether any process grew in its life. Pure but for `Sample.of`."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median

LEASE_SECONDS = 15.0  # that of the aggregator's file
RECOVERY_SECONDS = 15.0  # from the start of an aggregator or a coordinator to a release
_WARM_UP_SECONDS = 30.0  # imports, first connections, and memory that is kept for the next round
_SHORTEST_SECONDS = 60.0  # a life that tells whether something grows
_MORE_DESCRIPTORS = _MORE_THREADS = 4
_MORE_MEBIBYTES = 16.0
_FORMAT = "{:<18} {:>6} {:>11} {:>15} {:>15} {:>21}"


@dataclass(frozen=True)
class Sample:
    """A process at a moment of the soak: open files, threads, and resident memory in MiB."""

    name: str
    at: float
    pid: int
    descriptors: int
    threads: int
    mebibytes: float

    @classmethod
    def of(cls, name: str, at: float, pid: int) -> "Sample":
        """Look at a process now. Raises FileNotFoundError or ProcessLookupError where it has ended."""
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        values = {key: value.split() for key, _, value in (line.partition(":") for line in lines)}
        if "VmRSS" not in values:  # it is ending
            raise ProcessLookupError(pid)
        descriptors = len(list(Path(f"/proc/{pid}/fd").iterdir()))
        rss = int(values["VmRSS"][0]) / 1024
        return cls(name, at, pid, descriptors, int(values["Threads"][0]), rss)


@dataclass(frozen=True)
class Kill:
    """When a container was killed and when it was started again, in seconds of the soak."""

    victim: str
    at: float
    restarted: float


@dataclass(frozen=True)
class Growth:
    """The longest life of a process: medians of its first third and its last, after it was warm."""

    name: str
    lives: int
    seconds: float
    descriptors: tuple[float, float]
    threads: tuple[float, float]
    mebibytes: tuple[float, float]

    @property
    def is_too_much(self) -> bool:
        """A life that is too short to tell is no finding."""
        (d0, d1), (t0, t1), (m0, m1) = self.descriptors, self.threads, self.mebibytes
        grew = d1 > d0 + _MORE_DESCRIPTORS or t1 > t0 + _MORE_THREADS or m1 > m0 + _MORE_MEBIBYTES
        return grew and self.seconds >= _SHORTEST_SECONDS


def growth_of(samples: Sequence[Sample]) -> list[Growth]:
    """One for each name that was seen for longer than it takes to be warm."""
    found = []
    for name in sorted({sample.name for sample in samples}):
        lives: dict[int, list[Sample]] = {}
        for sample in (s for s in samples if s.name == name):
            lives.setdefault(sample.pid, []).append(sample)
        longest = max(lives.values(), key=lambda life: life[-1].at - life[0].at)
        warm = [s for s in longest if s.at >= longest[0].at + _WARM_UP_SECONDS]
        third = len(warm) // 3
        if third:
            found.append(_growth(name, len(lives), warm[:third], warm[-third:]))
    return found


def _growth(name: str, lives: int, first: list[Sample], last: list[Sample]) -> Growth:
    return Growth(
        name,
        lives,
        last[-1].at - first[0].at,
        (median(s.descriptors for s in first), median(s.descriptors for s in last)),
        (median(s.threads for s in first), median(s.threads for s in last)),
        (median(s.mebibytes for s in first), median(s.mebibytes for s in last)),
    )


def lost_seconds(
    kill: Kill, released: Sequence[float], usual: float, owners: Collection[str]
) -> float:
    """By how much a kill made a round longer: from the kill of an owner on, else from the restart on."""
    after = [at for at in released if at > kill.at]
    if not after:
        return 0.0
    if kill.victim in owners:
        before = max((at for at in released if at <= kill.at), default=kill.at)
        return after[0] - before - usual
    # A release may have come in the moment before the kill, and be noted only after the restart.
    return (
        min((at for at in released if at > kill.restarted), default=after[0])
        - kill.restarted
        - usual
    )


def usual_seconds(released: Sequence[float], kills: Sequence[Kill]) -> float:
    """The median time from one release to the next where nobody was killed in between, nor just before."""
    gaps = [
        later - earlier
        for earlier, later in pairwise(released)
        if not any(
            kill.at <= later and earlier <= kill.restarted + RECOVERY_SECONDS for kill in kills
        )
    ]
    return median(gaps) if gaps else 0.0


def findings(
    samples: Sequence[Sample],
    kills: Sequence[Kill],
    released: Sequence[float],
    owners: Collection[str],
) -> Iterator[str]:
    """What must not have been."""
    for growth in growth_of(samples):
        if growth.is_too_much:
            yield f"{growth.name} grew in its longest life: {growth}"
    usual = usual_seconds(released, kills)
    for kill in kills:
        limit = LEASE_SECONDS if kill.victim in owners else RECOVERY_SECONDS
        lost = lost_seconds(kill, released, usual, owners)
        if lost > limit:
            yield f"the kill of {kill.victim} at {kill.at:.0f} s cost {lost:.1f} s, more than {limit:g} s"


def report(
    samples: Sequence[Sample],
    kills: Sequence[Kill],
    released: Sequence[float],
    counted: Mapping[int, frozenset[str]],
    owners: Collection[str],
) -> str:
    """The figures, as a table of the kills and a table of the processes."""
    usual = usual_seconds(released, kills)
    whole = sum(names == frozenset(owners) for names in counted.values())
    summary = (
        f"{len(released)} rounds, {whole} of them with all {len(owners)} owners; from release to"
        f" release {usual:.1f} s while nobody was killed; {len(kills)} kills"
    )
    lines = [summary, "", "killed            kills  seconds lost: median, worst"]
    for victim in sorted({kill.victim for kill in kills}):
        lost = [lost_seconds(k, released, usual, owners) for k in kills if k.victim == victim]
        lines.append(f"{victim:<18} {len(lost):>4}  {median(lost):>20.1f}  {max(lost):>5.1f}")
    heading = ("process", "lives", "longest", "descriptors", "threads", "RSS MiB")
    lines += ["", _FORMAT.format(*heading)]
    for growth in growth_of(samples):
        pairs = growth.descriptors, growth.threads, growth.mebibytes
        texts = (f"{first:.0f} -> {last:.0f}" for first, last in pairs)
        lines.append(_FORMAT.format(growth.name, growth.lives, f"{growth.seconds:.0f} s", *texts))
    return "\n".join(lines)
