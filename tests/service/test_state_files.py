"""What an aggregator does at its start to the files that it finds in its state directory."""

import signal
from pathlib import Path

import pytest

from cairn.v1 import aggregator_pb2
from tests.scenarios.processes import Node
from tests.service.network import Network
from tests.warm.start import BIN

RELEASED = aggregator_pb2.ROUND_STATE_RELEASED
STRANGERS = ("notes.txt", "model.safetensors", f"{'ab' * 31}.safetensors", "folder/of/somebody")
LEFT_OVER = (f"{'ab' * 32}.safetensors", f".cairn-{'0' * 16}.tmp")


def filled(directory: Path) -> Path:
    for name in (*STRANGERS, *LEFT_OVER):
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("of somebody")
    return directory


def stopped(network: Network) -> None:
    network.node.send(signal.SIGTERM)
    assert network.node.ends() == 0


def names_in(directory: Path) -> set[str]:
    return {str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file()}


def test_it_deletes_only_files_that_carry_the_names_it_gives(own_network: Network) -> None:
    job = own_network.job()
    release = job.run({"alice": bytes(16), "bob": bytes(16)}).statement
    kept = f"{release.manifest_digest.hex()}.safetensors"
    stopped(own_network)
    releases = filled(own_network.state / "releases")
    own_network.node = own_network._start()
    assert names_in(releases) == {*STRANGERS, kept}


def refused_start(network: Network) -> str:
    """What it says, where it must not start."""
    config = network.directory / "aggregator.toml"
    log = network.directory / "refused.log"
    node = Node("refused", log, BIN / "aggregator-node", "--config", config)
    assert node.ends() == 2
    return node.output()


def test_it_does_not_start_where_the_folder_of_releases_is_a_link_and_deletes_nothing(
    own_network: Network, tmp_path: Path
) -> None:
    stopped(own_network)
    elsewhere = filled(tmp_path / "of somebody else")
    releases = own_network.state / "releases"
    releases.rmdir()
    releases.symlink_to(elsewhere)
    told = refused_start(own_network)
    assert f"{releases} is a symbolic link" in told
    assert "Traceback" not in told
    assert names_in(elsewhere) == {*STRANGERS, *LEFT_OVER}
    releases.unlink()
    own_network.node = own_network._start()


@pytest.mark.parametrize("name", ["aggregator.sqlite", "aggregator.sqlite-wal", "lock"])
def test_it_does_not_start_where_a_file_of_its_state_is_a_link(
    own_network: Network, tmp_path: Path, name: str
) -> None:
    stopped(own_network)
    path, elsewhere = own_network.state / name, tmp_path / "elsewhere"
    if path.exists():
        path.rename(elsewhere)
    path.symlink_to(elsewhere)
    assert f"{path} is a symbolic link" in refused_start(own_network)
    path.unlink()
    if elsewhere.exists():
        elsewhere.rename(path)
    own_network.node = own_network._start()
