"""`cairn verify` on what real nodes wrote, and a coordinator whose aggregator was put back."""

import random
import shutil
import signal
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.scenarios.federation import Federation
from tests.scenarios.processes import Node
from tests.warm.start import BIN, run

MakeFederation = Callable[..., Federation]

TWO = {"alice": 1.0, "bob": -0.3}


def verify(federation: Federation, path: Path, *options: str | Path) -> tuple[int, str]:
    """The exit code of the command, and what it prints."""
    config = federation.files / "coordinator.toml"
    command = [BIN / "cairn", "verify", path, "--config", config, *options]
    done = run(command, merged=True)
    said = done.stdout.decode()
    assert "Traceback" not in said
    return done.returncode, said


def stop(*nodes: Node) -> None:
    for node in nodes:
        node.send(signal.SIGTERM)
    for node in nodes:
        assert node.ends() == 0, node.output()


def state_of(federation: Federation, node: str) -> Path:
    return federation.files / node / "state"


def test_a_run_that_was_stopped_and_resumed_verifies_while_the_nodes_go_on(
    federate: MakeFederation,
) -> None:
    federation = federate(TWO)
    federation.gate("bob", 2)
    nodes = [federation.aggregator(), *federation.owners().values()]
    coordinator = federation.coordinator(rounds=3)
    with federation.held("bob", 2):
        coordinator.send(signal.SIGTERM)
        assert coordinator.ends() == 1
    code, output = verify(federation, federation.out)
    assert code == 0, output
    assert federation.coordinator(rounds=3).ends() == 0
    code, output = verify(federation, federation.out)
    assert code == 0, output
    assert "history.jsonl: its 3 rounds are the releases of halving" in output
    for name in TWO:
        release = ("--statement", federation.out / "release.json")
        code, output = verify(
            federation, state_of(federation, name), "--ledger", federation.out, *release
        )
        assert code == 0, output
        assert "3 release statements are signed by the aggregator" in output
        assert "release.json: halving round 4: counted" in output
    code, output = verify(
        federation, state_of(federation, "aggregator"), "--ledger", federation.out
    )
    assert code == 0, output
    assert "ok     aggregator.sqlite, refusals: the chain of" in output
    assert all(node.process.poll() is None for node in nodes)


def test_a_run_that_was_killed_is_behind_until_the_same_command_ends_it(
    federate: MakeFederation,
) -> None:
    federation = federate(TWO)
    federation.gate("bob", 3)
    aggregator, *_ = federation.aggregator(), *federation.owners().values()
    coordinator = federation.coordinator(rounds=3)
    with federation.held("bob", 3):
        coordinator.send(signal.SIGKILL)
        assert coordinator.ends() == -signal.SIGKILL
        code, output = verify(federation, federation.out)
        assert code == 1
        assert "FAILED" not in output
        assert "BEHIND release.json: ledger.jsonl ends at entry 1, before entry" in output
        assert "Not ended: nothing that is there is wrong" in output
        state = ("--ledger", state_of(federation, "aggregator"))
        code, output = verify(federation, federation.out, *state)
        assert code == 0, output
    assert aggregator.process.poll() is None
    assert federation.coordinator(rounds=3).ends() == 0
    code, output = verify(federation, federation.out)
    assert code == 0, output


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    """A federation that has ended a job of two rounds, and whose nodes are stopped."""
    federation = Federation(tmp_path_factory.mktemp("ended"), TWO, floor=2)
    try:
        nodes = [federation.aggregator(), *federation.owners().values()]
        assert federation.coordinator(rounds=2).ends() == 0
        stop(*nodes)
        yield federation
    finally:
        federation.close()


def with_a_byte_changed(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[random.Random(len(content)).randrange(len(content))] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("model.safetensors", "model.safetensors: its BLAKE3 is"),
        ("release.json", "release.json: "),
        ("ledger.jsonl", "ledger.jsonl: entry "),
    ],
)
def test_a_byte_of_a_run_that_was_changed_is_found(
    ended: Federation, tmp_path: Path, name: str, place: str
) -> None:
    run = tmp_path / "run"
    shutil.copytree(ended.out, run)
    assert verify(ended, run)[0] == 0
    with_a_byte_changed(run / name)
    code, output = verify(ended, run)
    assert code == 1
    assert f"FAILED {place}" in output


def test_a_byte_of_an_owners_ledger_that_was_changed_is_found(
    ended: Federation, tmp_path: Path
) -> None:
    state = tmp_path / "state"
    shutil.copytree(state_of(ended, "bob"), state)
    assert verify(ended, state, "--ledger", ended.out)[0] == 0
    with closing(sqlite3.connect(state / "owner.sqlite")) as db, db:
        number, body = db.execute(
            "SELECT number, body FROM ledger WHERE kind = 'sent' ORDER BY number DESC"
        ).fetchone()
    database = state / "owner.sqlite"
    content = database.read_bytes()
    assert content.count(body) == 1
    changed = body.replace(b'"bytes":12', b'"bytes":13')
    assert len(changed) == len(body)
    assert changed != body
    database.write_bytes(content.replace(body, changed))
    code, output = verify(ended, state, "--ledger", ended.out)
    assert code == 1
    assert f"FAILED owner.sqlite: entry {number} does not follow from the one before it" in output


def test_a_coordinator_does_not_go_on_with_an_aggregator_that_was_put_back(
    federate: MakeFederation,
) -> None:
    federation = federate(TWO)
    state, older = state_of(federation, "aggregator"), federation.home / "older"
    aggregator = federation.aggregator()
    stop(aggregator)
    shutil.copytree(state, older)
    aggregator = federation.aggregator()
    owners = federation.owners()
    federation.gate("bob", 2)
    coordinator = federation.coordinator(rounds=2)
    with federation.held("bob", 2):
        coordinator.send(signal.SIGTERM)
        assert coordinator.ends() == 1
    stop(aggregator, *owners.values())
    entries = len((federation.out / "ledger.jsonl").read_text().splitlines())
    model = (federation.out / "model.safetensors").read_bytes()
    shutil.rmtree(state)
    older.rename(state)
    federation.aggregator()
    coordinator = federation.coordinator(rounds=2)
    assert coordinator.ends() == 1
    assert (
        f"error: the aggregator's ledger was replaced or rolled back: entry {entries} is not the one"
        in coordinator.output()
    )
    assert "Traceback" not in coordinator.output()
    assert (federation.out / "model.safetensors").read_bytes() == model
    assert len((federation.out / "ledger.jsonl").read_text().splitlines()) == entries
