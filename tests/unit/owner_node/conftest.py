"""An owner that takes part in rounds of what a test plays."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.owner_node.round_bench import Bench


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    yield made
    made.state.close()
