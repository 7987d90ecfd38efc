"""What docker-compose.yml says: who accepts it, and what no service is given."""

import json
import shutil
import subprocess
from typing import Any

import pytest

from tests.containers.compose import COMPOSE_FILE, NODES, Project

pytestmark = pytest.mark.containers


def read_by_compose() -> dict[str, Any]:
    read: dict[str, Any] = json.loads(Project("config").must("config", "--format", "json"))
    return read


def test_compose_1_29_accepts_the_file() -> None:
    program = shutil.which("docker-compose")
    version = subprocess.run(
        [program or "false", "version", "--short"], capture_output=True, text=True, check=False
    ).stdout
    if not version.startswith("1."):
        pytest.skip("docker-compose 1.29 is not installed here")
    ended = subprocess.run(
        [str(program), "--file", str(COMPOSE_FILE), "config", "--quiet"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr


def test_compose_2_reads_every_node_of_the_tutorial() -> None:
    assert set(read_by_compose()["services"]) == {*NODES, "certificates"}


def test_one_service_builds_an_image_and_the_others_take_what_it_has_built() -> None:
    services = read_by_compose()["services"]
    built = [service["image"] for service in services.values() if "build" in service]
    assert sorted(built) == ["cairn-aggregator", "cairn-node"]
    for name, service in services.items():
        assert service["image"] in built, name
        assert service["pull_policy"] == "never", name


def test_whoever_starts_the_coordinator_has_both_images_built() -> None:
    """Compose builds for a service what it depends on, and no more."""
    services = read_by_compose()["services"]
    needed, left = {"coordinator"}, ["coordinator"]
    while left:
        new = set(services[left.pop()].get("depends_on", {})) - needed
        needed |= new
        left += new
    assert {name for name in services if "build" in services[name]} <= needed


def test_no_port_is_published_and_no_network_leads_outside() -> None:
    read = read_by_compose()
    assert [name for name, service in read["services"].items() if service.get("ports")] == []
    assert [name for name, network in read["networks"].items() if not network["internal"]] == []


def test_every_service_has_a_read_only_root_no_capability_and_no_way_to_gain_one() -> None:
    for name, service in read_by_compose()["services"].items():
        given = service["read_only"], service["cap_drop"], service["security_opt"]
        assert given == (True, ["ALL"], ["no-new-privileges:true"]), name


def test_every_node_says_how_its_health_is_asked() -> None:
    services = read_by_compose()["services"]
    for name in NODES:
        config = f"/nodes/{name}/{name}.toml"
        asked = ["CMD", "cairn", "health", "--config", config]
        assert services[name]["healthcheck"]["test"] == asked


def test_no_two_nodes_share_a_volume_and_none_has_the_authoritys() -> None:
    services = read_by_compose()["services"]
    held = {
        name: {v["source"] for v in services[name]["volumes"] if v["type"] == "volume"}
        for name in NODES
    }
    assert held == {
        "aggregator": {"aggregator"},
        "alice": {"alice", "alice-ledger"},
        "bob": {"bob", "bob-ledger"},
        "coordinator": {"coordinator", "model"},
    }


def test_an_owner_is_given_its_own_data_and_nobody_elses() -> None:
    services = read_by_compose()["services"]
    for name in NODES:
        files = {v["target"] for v in services[name]["volumes"] if "/data/" in v["target"]}
        own = {f"/examples/tutorial/data/{name}.csv"} if name in {"alice", "bob"} else set()
        assert files == own
