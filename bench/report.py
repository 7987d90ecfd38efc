"""Writes measurements into bench/README.md, between two comments that mark where they belong."""

import os
import platform
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from bench.failure import BenchFailed

_README = Path(__file__).with_name("README.md")
_PACKAGES = ("cairn", "torch", "numpy", "grpcio", "protobuf")


class Table:
    """A table in Markdown."""

    def __init__(self, *headings: str) -> None:
        self._rows: list[Sequence[object]] = [headings, ["---"] * len(headings)]

    def add(self, *cells: object) -> None:
        self._rows.append(cells)

    def __str__(self) -> str:
        return "\n".join(f"| {' | '.join(map(str, row))} |" for row in self._rows)


def write_section(name: str, paragraphs: Sequence[str]) -> None:
    """Put the paragraphs in place of the section's, after a line on when and where they were measured."""
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    text = _README.read_text(encoding="utf-8")
    before, begun, rest = text.partition(begin)
    _, ended, after = rest.partition(end)
    if not (begun and ended):
        raise BenchFailed(f"{_README} has no {begin} and {end}")
    section = "\n\n".join([begin, f"{datetime.now(UTC):%Y-%m-%d}: {_machine()}.", *paragraphs, end])
    _README.write_text(before + section + after, encoding="utf-8")


def _machine() -> str:
    """The versions, and the machine."""
    versions = ", ".join(f"{package} {version(package)}" for package in _PACKAGES)
    cores = len(os.sched_getaffinity(0))
    model = re.search(r"^model name\s*: (.*)$", _read("/proc/cpuinfo"), re.MULTILINE)
    memory = re.search(r"^MemTotal:\s*(\d+)", _read("/proc/meminfo"), re.MULTILINE)
    gigabytes = f"{int(memory[1]) * 1024 / 1e9:.0f} GB of memory" if memory else "memory unknown"
    processor = model[1] if model else platform.machine()
    return (
        f"Python {platform.python_version()}, {versions}; {processor}, {cores} cores, {gigabytes}"
    )


def _read(path: str) -> str:
    return Path(path).read_text(encoding="utf-8")
