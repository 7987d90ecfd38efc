"""One federation that stays up while many tests look at it. `make containers` builds the images."""

from collections.abc import Iterator

import pytest

from tests.containers.compose import Project, longer_job


@pytest.fixture(scope="session")
def standing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    """The whole federation, at work on a job that outlasts the tests."""
    endless = longer_job(tmp_path_factory.mktemp("endless"), rounds=1_000_000)
    with Project("standing", endless).taken_down() as project:
        project.must("up", "--detach", "--no-build")
        project.wait_for_line("coordinator", "Round ")
        yield project
