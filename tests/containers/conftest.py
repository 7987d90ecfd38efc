"""Federations that stay up while many tests look at them, or fault them. `make containers` builds the images."""

import os
from collections.abc import Iterator

import pytest

from tests.chaos.conftest import Faultless
from tests.chaos.marking import Table
from tests.containers.boxes import Boxes
from tests.containers.compose import Project, longer_job, unhurried_owners


@pytest.fixture(scope="module")
def standing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    """The whole federation, at work on a job that outlasts the tests and leaves the processor to them."""
    endless = longer_job(tmp_path_factory.mktemp("endless"), rounds=1_000_000)
    unhurried = unhurried_owners(tmp_path_factory.mktemp("unhurried"))
    with Project("standing", endless, unhurried).taken_down() as project:
        project.must("up", "--detach", "--no-build")
        project.wait_for_line("coordinator", "Round ")
        yield project


@pytest.fixture(scope="session")
def all_boxes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Boxes]]:
    """The federations of this session: another is made where a test left the last one broken."""
    made = [_boxes(tmp_path_factory)]
    yield made
    for boxes in made:
        boxes.close()


@pytest.fixture(scope="session")
def faultless(all_boxes: list[Boxes]) -> Faultless:
    (boxes,) = all_boxes
    with boxes.explained():
        boxes.begin()
        boxes.run_to_end()
    assert boxes.restarts == []
    return Faultless(boxes.model(), frozenset())


@pytest.fixture
def boxes(all_boxes: list[Boxes], tmp_path_factory: pytest.TempPathFactory) -> Boxes:
    if all_boxes[-1].is_broken:
        all_boxes[-1].close()
        all_boxes.append(_boxes(tmp_path_factory))
    return all_boxes[-1]


def _boxes(made_in: pytest.TempPathFactory) -> Boxes:
    if os.geteuid() != 0:
        pytest.skip("only root can fill a node's disk and spoil its network")
    return Boxes(made_in.mktemp("boxes"), Table(rows=16, secret_floats=1 << 18))
