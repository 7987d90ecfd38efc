"""An aggregator that ends and starts again: what was promised still stands, and nothing else is left."""

import hashlib
import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from cairn.v1 import aggregator_pb2
from cairn.v1 import round_pb2 as pb
from tests.scenarios.processes import Node, free_port
from tests.service.network import SECONDS, Network, OpenRound, refused
from tests.warm.start import BIN

UPDATES = {"alice": bytes([0, 0, 128, 63] * 4), "bob": bytes(16)}  # ones and zeros
HALVES = bytes([0, 0, 0, 63] * 4)
REASONS = [name.removeprefix("REASON_") for name in pb.Reason.keys()]  # noqa: SIM118 - no dict


@pytest.fixture
def network(tmp_path: Path) -> Iterator[Network]:
    """An aggregator of its own."""
    network = Network(tmp_path)
    yield network
    network.stop()


def open_again(opened: OpenRound, network: Network) -> OpenRound:
    """The same round, asked about over new connections."""
    opened.job.coordinator = network.release()
    return opened


@pytest.mark.parametrize("kill", [True, False], ids=["SIGKILL", "SIGTERM"])
def test_an_open_round_is_aborted_by_a_restart_and_the_job_goes_on(
    network: Network, *, kill: bool
) -> None:
    job = network.job()
    opened = job.open()
    opened.join("alice")
    opened.push("alice", UPDATES["alice"])
    network.restart(kill=kill)
    ended = open_again(opened, network).ends()
    assert ended.state == aggregator_pb2.ROUND_STATE_ABORTED
    assert ended.reason == "AGGREGATOR_RESTARTED"
    for owner in UPDATES:
        with refused(grpc.StatusCode.FAILED_PRECONDITION, "the round has ended"):
            opened.join(owner)
    state = job.register()
    assert (state.last_round, state.released) == (1, 0)
    assert not state.HasField("open_manifest")
    assert job.run(UPDATES, number=2).payload == HALVES


@pytest.mark.parametrize("kill", [True, False], ids=["SIGKILL", "SIGTERM"])
def test_the_last_release_is_collected_after_a_restart_byte_by_byte(
    network: Network, *, kill: bool
) -> None:
    job = network.job()
    opened = job.open()
    for owner, update in UPDATES.items():
        opened.join(owner)
        opened.push(owner, update)
    opened.ends()
    before = opened.collect()
    network.restart(kill=kill)
    assert open_again(opened, network).collect() == before
    assert job.register().last_statement == before[0]
    assert job.run(UPDATES, number=2, base=before[1]).payload == HALVES


def test_a_receipt_that_a_crash_took_along_is_signed_again_and_for_its_owner_alone(
    network: Network,
) -> None:
    opened = network.job().open()
    receipts = {}
    for owner, update in UPDATES.items():
        opened.join(owner)
        receipts[owner] = opened.push(owner, update, metrics={"loss": 0.25}, examples=7)
    opened.ends()
    files = [path.read_bytes() for path in network.state.rglob("*") if path.is_file()]
    network.restart(kill=True)

    def described(**changes: Any) -> aggregator_pb2.GetReceiptRequest:
        receipt = aggregator_pb2.Receipt.FromString(receipts["alice"].body)
        described = aggregator_pb2.GetReceiptRequest(
            manifest_digest=opened.digest,
            payload_digest=receipt.payload_digest,
            examples=receipt.examples,
            metrics=receipt.metrics,
            salt=receipt.salt,
        )
        for name, value in changes.items():
            setattr(described, name, value)
        return described

    alice, bob = network.intake("alice"), network.intake("bob")
    assert alice.GetReceipt(described(), timeout=SECONDS).receipt == receipts["alice"]
    with refused(grpc.StatusCode.NOT_FOUND, "no such update of yours"):
        bob.GetReceipt(described(), timeout=SECONDS)
    for change in ({"salt": bytes(32)}, {"payload_digest": bytes(32)}, {"examples": 8}):
        with refused(grpc.StatusCode.NOT_FOUND, "no such update of yours"):
            alice.GetReceipt(described(**change), timeout=SECONDS)
    with refused(grpc.StatusCode.INVALID_ARGUMENT, "salt has 31 bytes"):
        alice.GetReceipt(described(salt=bytes(31)), timeout=SECONDS)
    # Who is not of the cohort does not even learn whether the round was released.
    with refused(grpc.StatusCode.PERMISSION_DENIED, "erin is not in the cohort"):
        network.intake("erin").GetReceipt(described(), timeout=SECONDS)
    # What makes a receipt one's own was on no disk of the aggregator.
    for receipt in receipts.values():
        salt = aggregator_pb2.Receipt.FromString(receipt.body).salt
        assert not any(salt in file for file in files)


def test_an_aborted_round_has_no_receipt_after_a_crash(network: Network) -> None:
    opened = network.job().open()
    opened.join("alice")
    opened.push("alice", UPDATES["alice"])
    network.restart(kill=True)
    with refused(grpc.StatusCode.FAILED_PRECONDITION, "the round has ended"):
        opened.receipt("alice")
    with refused(grpc.StatusCode.PERMISSION_DENIED, "erin is not in the cohort"):
        opened.receipt("erin")


def test_no_update_ever_touches_the_disk(network: Network) -> None:
    secret = b"\x56\x34\x12\x3f\x21\x43\x65\x3f" * 2  # 0.5711 and 0.8956
    job = network.job()
    opened = job.open(["alice", "bob", "carol"])
    for owner in ("alice", "bob", "carol"):
        opened.join(owner)
    opened.push("alice", secret)
    opened.push("bob", bytes(16))

    def files() -> list[bytes]:
        return [path.read_bytes() for path in network.state.rglob("*") if path.is_file()]

    digest = job.spec.schema.digest(secret)
    assert not any(secret in content or digest in content for content in files())
    opened.push("carol", bytes(16))
    opened.ends()
    network.node.kill()
    assert not any(secret in content or digest in content for content in files())
    assert secret.hex() not in network.node.output()
    assert digest.hex() not in network.node.output()
    network.restart(kill=True)


def test_the_ledger_is_chained_over_restarts_and_holds_no_owners_value(network: Network) -> None:
    job = network.job()
    job.run(UPDATES)
    network.restart(kill=True)
    job.coordinator = network.release()
    job.open(number=2, base=HALVES).abort()
    request = aggregator_pb2.ListEntriesRequest(first=1, limit=1000)
    entries = network.record("alice").ListEntries(request, timeout=SECONDS).entries
    assert [entry.kind for entry in entries] == ["job", "open", "release", "open", "abort"]
    head = bytes(32)
    for number, entry in enumerate(entries, 1):
        head = hashlib.sha256(head + entry.kind.encode() + b"\0" + entry.body).digest()
        assert (entry.number, entry.head) == (number, head)
        facts = json.loads(entry.body)
        allowed = {
            "job",
            "job_digest",
            "coordinator",
            "round",
            "phase",
            "manifest_digest",
            "cohort",
            "reason",
        }
        allowed |= {"base_digest", "release_digest", "statement_digest", "unix_ms"}
        assert set(facts) <= allowed | {"contributors", "exclusions"}
        assert set(facts.get("exclusions", {}).values()) <= set(REASONS)
    request.first = 4
    assert len(network.record("coordinator").ListEntries(request, timeout=SECONDS).entries) == 2


def aggregator(network: Network, config: str, tmp_path: Path) -> Node:
    path = network.directory / "second.toml"
    path.write_text(config)
    return Node("second", tmp_path / "second.log", BIN / "aggregator-node", "--config", path)


def test_a_second_aggregator_on_the_same_ports_is_refused(network: Network, tmp_path: Path) -> None:
    config = (network.directory / "aggregator.toml").read_text()
    second = aggregator(network, config.replace("aggregator/state", "second/state"), tmp_path)
    assert second.ends() == 2
    port = network.intake_at.rpartition(":")[2]
    assert f"error: cannot listen on 127.0.0.1:{port}: another process has" in second.output()
    assert "Traceback" not in second.output()


def test_a_second_aggregator_on_the_same_state_is_refused(network: Network, tmp_path: Path) -> None:
    config = (network.directory / "aggregator.toml").read_text()
    for address in (network.intake_at, network.release_at):
        config = config.replace(address.rpartition(":")[2], str(free_port()))
    second = aggregator(network, config, tmp_path)
    assert second.ends() == 2
    assert "is in use by another node" in second.output()
    assert "Traceback" not in second.output()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_ends_at_once_though_owners_are_pushing_and_coordinators_watching(
    network: Network, number: signal.Signals
) -> None:
    opened = network.job().open()
    opened.join("alice")
    watching = opened.watch()
    next(watching)
    network.node.send(number)
    assert network.node.ends() == 0
    assert "Traceback" not in network.node.output()
    network.restart(kill=True)
