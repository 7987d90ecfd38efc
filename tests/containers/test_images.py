"""What is in the two images."""

import json
import subprocess
from collections.abc import Sequence

import pytest

from tests.containers.compose import DOCKER, docker

pytestmark = pytest.mark.containers


def inside(
    image: str, *command: str, limits: Sequence[str] = ()
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [DOCKER, "run", "--rm", "--network", "none", *limits, image, *command],
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("image", ["cairn-node", "cairn-aggregator"])
def test_an_image_runs_as_a_user_that_is_not_root(image: str) -> None:
    described = json.loads(docker("image", "inspect", image))
    assert described[0]["Config"]["User"] == "10001:10001"
    assert inside(image, "id", "-u").stdout.strip() == "10001"


def test_the_aggregators_image_has_no_pytorch_and_the_nodes_has() -> None:
    code = "import importlib.util as u; print(u.find_spec('torch') is not None)"
    assert inside("cairn-aggregator", "python", "-c", code).stdout.strip() == "False"
    assert inside("cairn-node", "python", "-c", code).stdout.strip() == "True"


@pytest.mark.parametrize("image", ["cairn-node", "cairn-aggregator"])
def test_nothing_can_be_installed_into_an_image_and_no_test_or_key_is_in_it(image: str) -> None:
    assert inside(image, "python", "-m", "pip", "--version").returncode != 0
    found = inside(image, "find", "/", "-xdev", "-user", "10001", "-type", "f")
    assert found.stdout == ""


def test_the_health_command_imports_no_pytorch() -> None:
    code = "import sys, cairn.cli.health; print('torch' in sys.modules)"
    assert inside("cairn-node", "python", "-c", code).stdout.strip() == "False"


def test_an_aggregator_reckons_with_the_memory_of_its_container_and_not_of_the_machine() -> None:
    code = (
        "from aggregator_node.aggregation.workspace import memory_of_this_machine as m; print(m())"
    )
    limits = ("--memory", "96m")
    found = inside("cairn-aggregator", "python", "-c", code, limits=limits)
    assert int(found.stdout) == 96 << 20
