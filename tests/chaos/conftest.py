"""One federation for all faults, and the model of a run without any."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest

from tests.chaos.stage import Stage

_MOST_JOBS = 20  # of one stage: every test verifies the ledgers of all jobs before its own


@dataclass(frozen=True)
class Faultless:
    """A run in which nothing failed: the model, and the points that it reached."""

    model: dict[str, np.ndarray]
    reached: frozenset[str]


@pytest.fixture(scope="session")
def stages(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Stage]]:
    """The stages of this session: another one is made where the last one is broken or its ledgers are long."""
    made = [Stage(tmp_path_factory.mktemp("chaos"))]
    yield made
    for stage in made:
        stage.close()


@pytest.fixture(scope="session")
def faultless(stages: list[Stage]) -> Faultless:
    (stage,) = stages
    with stage.explained():
        stage.begin()
        stage.run_to_end()
    assert stage.restarts == []
    return Faultless(stage.model(), frozenset(stage.reached))


@pytest.fixture
def stage(stages: list[Stage], tmp_path_factory: pytest.TempPathFactory) -> Stage:
    if stages[-1].is_broken or stages[-1].jobs >= _MOST_JOBS:
        stages[-1].close()
        stages.append(Stage(tmp_path_factory.mktemp("chaos")))
    return stages[-1]
