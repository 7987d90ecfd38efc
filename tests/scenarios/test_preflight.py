"""What a node checks at its start, and what `cairn doctor` says beside nodes that run."""

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from cairn.identity.authority import Authority, Subject, issue, new_request
from cairn.identity.names import NodeName, Role
from cairn.ledger.files import read_ledger, read_refusals
from cairn.storage.directory import AGGREGATOR_DATABASE
from tests.scenarios.federation import Federation
from tests.scenarios.processes import Node
from tests.warm.start import BIN, run

MakeFederation = Callable[..., Federation]

NODES = ("aggregator", "coordinator", "alice")


@pytest.fixture
def federation(federate: MakeFederation) -> Federation:
    return federate({"alice": 1.0, "bob": -0.3})


def start(federation: Federation, name: str) -> Node:
    if name == "coordinator":
        return federation.coordinator()
    if name == "aggregator":
        config = federation.files / "aggregator.toml"
        return federation._start(name, "aggregator-node", "--config", str(config))
    return federation.owner(name)


def doctor(config: Path) -> tuple[int, list[dict[str, str]]]:
    """Its exit code, and what it found but that something is in order."""
    done = run([BIN / "cairn", "doctor", config, "--json"])
    assert b"Traceback" not in done.stderr
    found = json.loads(done.stdout)["findings"]
    return done.returncode, [each for each in found if each["grade"] != "ok"]


def certify(federation: Federation, name: str, role: Role, days: int) -> None:
    """Give the node another certificate, for its own key."""
    home = federation.files / "authority"
    authority = Authority(
        (home / "authority.crt").read_bytes(), (home / "authority.key").read_bytes()
    )
    subject = Subject(NodeName("ward", role, name))
    request = new_request(subject, (federation.files / name / "node.key").read_bytes())
    begin = datetime.now(UTC) - timedelta(minutes=5)
    certificate = issue(authority, request, subject, begin, days)
    (federation.files / name / "node.crt").write_bytes(certificate)


@pytest.mark.parametrize("name", NODES)
def test_a_start_is_refused_with_the_sentences_of_the_doctor(
    federation: Federation, name: str
) -> None:
    home = federation.files / name
    (home / "node.key").chmod(0o644)
    (home / "authority.crt").write_bytes((home / "node.crt").read_bytes())
    _, findings = doctor(federation.files / f"{name}.toml")
    faults = [each for each in findings if each["grade"] == "fault"]
    expected = [each["sentence"] for each in faults if each["check"] in {"identity", "pin"}]
    assert len(expected) == (2 if name == "aggregator" else 3)  # an aggregator pins nobody
    node = start(federation, name)
    assert node.ends() == 2
    assert node.output() == "error: " + "\n".join(expected) + "\n"


@pytest.mark.parametrize("name", NODES)
def test_a_node_whose_files_every_account_may_change_does_not_start(
    federation: Federation, name: str
) -> None:
    (federation.files / f"{name}.toml").chmod(0o666)
    (federation.files / name / "authority.crt").chmod(0o666)
    if name != "coordinator":
        (federation.files / name / "state").mkdir()
        (federation.files / name / "state").chmod(0o777)
    _, findings = doctor(federation.files / f"{name}.toml")
    expected = [each["sentence"] for each in findings if each["check"] == "access"]
    assert len(expected) == (2 if name == "coordinator" else 3)
    node = start(federation, name)
    assert node.ends() == 2
    assert node.output() == "error: " + "\n".join(expected) + "\n"


def test_an_owner_whose_task_or_data_is_missing_does_not_start(federation: Federation) -> None:
    federation.edit("alice", "task.py", "tusk.py")
    federation.edit("alice", "/data/alice", "/date/alice")
    node = federation.owner("alice")
    assert node.ends() == 2
    first, second = node.output().splitlines()
    assert "error: tasks.halving.file: there is no task file" in first
    assert "tasks.halving.data: there is no" in second
    assert "correct the path in this owner's file" in second


@pytest.mark.parametrize("name", ["aggregator", "coordinator"])
def test_a_node_whose_disk_takes_no_file_does_not_start(federation: Federation, name: str) -> None:
    if name == "coordinator":
        federation.out.write_text("a file where the run's folder should be")
    else:
        (federation.files / "aggregator/state").write_text("a file")
    node = start(federation, name)
    assert node.ends() == 2
    assert "cannot be used: [Errno 20] Not a directory" in node.output()
    assert "remove the file that is in a directory's place" in node.output()


def test_a_certificate_that_ends_soon_is_logged_and_the_node_starts(
    federation: Federation,
) -> None:
    certify(federation, "aggregator", Role.AGGREGATOR, 2)
    aggregator = federation.aggregator()
    (event,) = aggregator.events("a check at the start")
    assert event["level"] == "warning"
    assert event["check"] == "identity"
    assert "node.crt expires in 1 day, on " in event["found"]


def test_a_node_in_order_starts_without_a_word_of_its_checks(federation: Federation) -> None:
    assert federation.aggregator().events("a check at the start") == []


def test_the_doctor_beside_a_running_federation_finds_it_in_order(federation: Federation) -> None:
    aggregator = federation.aggregator()
    code, findings = doctor(federation.files / "aggregator.toml")
    assert code == 0
    assert [each["grade"] for each in findings] == ["note"] * 3
    assert [each["check"] for each in findings] == ["process", "port", "port"]
    assert doctor(federation.files / "coordinator.toml") == (0, [])
    code, findings = doctor(federation.files / "alice.toml")
    assert code == 0
    graded = [(each["grade"], each["check"]) for each in findings]
    assert graded == [("note", "sandbox"), ("warning", "coordinator")]
    database = federation.files / "aggregator/state" / AGGREGATOR_DATABASE
    assert list(read_ledger(database)) == []
    assert list(read_refusals(database)) == []
    assert aggregator.process.poll() is None


def test_an_owner_that_is_not_on_the_roster_is_told_by_the_aggregator(
    federation: Federation,
) -> None:
    federation.edit("aggregator", '"bob"', '"robert"')
    federation.aggregator()
    code, findings = doctor(federation.files / "bob.toml")
    assert code == 1
    (fault,) = [each for each in findings if each["grade"] == "fault"]
    assert "owner/bob in federation ward is not on the roster" in fault["sentence"]
