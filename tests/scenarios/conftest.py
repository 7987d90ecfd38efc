"""Federations that end with their test, whatever became of it."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from tests.scenarios.federation import Federation

MakeFederation = Callable[..., Federation]


@pytest.fixture
def federate(tmp_path: Path) -> Iterator[MakeFederation]:
    """Make the federation of a test: owners with their values, and a floor."""
    made: list[Federation] = []

    def make(values: Mapping[str, float], floor: int = 2, lease_seconds: int = 15) -> Federation:
        made.append(Federation(tmp_path, values, floor=floor, lease_seconds=lease_seconds))
        return made[-1]

    yield make
    for federation in made:
        federation.close()
