"""What a person gets wrong: one sentence that names the file and the cure, exit code 2 and no trace."""

import signal
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from cairn.identity.authority import Authority, Subject, issue, new_request
from cairn.identity.names import NodeName, Role
from tests.scenarios.federation import Federation
from tests.scenarios.processes import Node, until
from tests.warm.start import BIN

MakeFederation = Callable[..., Federation]

TWO = {"alice": 1.0, "bob": -0.3}
NODES = ("aggregator", "coordinator", "alice")


@pytest.fixture
def federation(federate: MakeFederation) -> Federation:
    return federate(TWO)


def start(federation: Federation, name: str) -> Node:
    if name == "coordinator":
        return federation.coordinator()
    if name == "aggregator":
        config = federation.files / "aggregator.toml"
        return federation._start(name, "aggregator-node", "--config", str(config))
    return federation.owner(name)


def mistake(node: Node) -> str:
    """Its one sentence."""
    assert node.ends() == 2
    output = node.output()
    assert "Traceback" not in output
    assert output.startswith("error: ")
    return output


@pytest.mark.parametrize("name", NODES)
def test_a_missing_file_is_named(federation: Federation, name: str) -> None:
    (federation.files / f"{name}.toml").unlink()
    assert f"{name}.toml: there is no such file" in mistake(start(federation, name))


@pytest.mark.parametrize("name", NODES)
def test_a_file_that_is_no_toml_is_named(federation: Federation, name: str) -> None:
    federation.edit(name, "federation = ", "federation: ")
    assert f"{name}.toml: is not valid TOML" in mistake(start(federation, name))


@pytest.mark.parametrize("name", NODES)
def test_an_unknown_key_is_named_with_the_nearest_known_one(
    federation: Federation, name: str
) -> None:
    federation.edit(name, "federation = ", "federatoin = ")
    sentence = mistake(start(federation, name))
    assert f"{name}.toml: unknown key federatoin; did you mean federation?" in sentence


def test_an_unknown_key_of_a_job_is_named_with_the_nearest_known_one(
    federation: Federation,
) -> None:
    sentence = mistake(federation.coordinator(round_deadline=5))
    assert "job.toml: unknown key round_deadline; did you mean round_deadline_seconds?" in sentence


@pytest.mark.parametrize("name", NODES)
def test_a_key_that_other_accounts_can_read_is_refused(federation: Federation, name: str) -> None:
    key = federation.files / name / "node.key"
    key.chmod(0o644)
    assert f"chmod 600 {key}" in mistake(start(federation, name))


def certify(federation: Federation, name: str, role: Role, valid_from: datetime) -> None:
    """Give the node another certificate, for its own key."""
    home = federation.files / "authority"
    authority = Authority(
        (home / "authority.crt").read_bytes(), (home / "authority.key").read_bytes()
    )
    subject = Subject(NodeName("ward", role, name))
    key = (federation.files / name / "node.key").read_bytes()
    certificate = issue(authority, new_request(subject, key), subject, valid_from, days=1)
    (federation.files / name / "node.crt").write_bytes(certificate)


@pytest.mark.parametrize("name", NODES)
def test_an_expired_certificate_is_refused(federation: Federation, name: str) -> None:
    role = Role.OWNER if name == "alice" else Role(name)
    certify(federation, name, role, datetime.now(UTC) - timedelta(days=3))
    sentence = mistake(start(federation, name))
    assert f"{name}/node.crt expired on" in sentence
    assert "renew it with `cairn request`" in sentence


@pytest.mark.parametrize("name", NODES)
def test_a_certificate_of_another_role_is_refused(federation: Federation, name: str) -> None:
    wrong = Role.COORDINATOR if name == "alice" else Role.OWNER
    right = "owner" if name == "alice" else name
    certify(federation, name, wrong, datetime.now(UTC))
    sentence = mistake(start(federation, name))
    assert f"{name}/node.crt is the certificate of {wrong}/{name} in federation ward" in sentence
    assert f"but this node is {right}/{name}" in sentence


@pytest.mark.parametrize("name", ["aggregator", "coordinator"])
def test_a_port_in_use_is_named(federation: Federation, name: str) -> None:
    federation.aggregator()
    if name == "aggregator":
        federation.edit("aggregator", "aggregator/state", "second/state")
    else:
        first = federation.coordinator()
        first.says("Job halving")
        federation.out = federation.home / "second"
    second = start(federation, name)
    assert second.ends() == 2
    assert "error: cannot listen on 127.0.0.1:" in second.output()
    assert "another process has the port" in second.output()


def test_a_coordinator_that_reaches_no_aggregator_gives_up_and_says_why(
    federation: Federation,
) -> None:
    federation.edit("coordinator", "\nlisten", "\npatience_seconds = 2\nlisten")
    coordinator = federation.coordinator()
    assert coordinator.ends() == 1
    assert "error: gave up on the aggregator at localhost:" in coordinator.output()
    assert "after 2 seconds: nothing listens there (connection refused)" in coordinator.output()
    assert "Traceback" not in coordinator.output()


def test_an_owner_that_reaches_no_coordinator_tries_visibly_and_gives_up(
    federation: Federation,
) -> None:
    federation.edit("alice", "\nfloor", "\npatience_seconds = 12\nfloor")
    owner = federation.owner("alice")
    owner.says("cannot reach a peer, trying again")
    assert owner.ends() == 1
    assert "error: gave up on the coordinator at localhost:" in owner.output()
    assert "after 12 seconds: nothing listens there (connection refused)" in owner.output()


def test_another_signing_key_than_the_pinned_one_is_not_believed(federation: Federation) -> None:
    other = federation.home / "other"
    done = Node("init", federation.home / "init.log", *init(other))
    assert done.ends() == 0
    keys = [signing_key_line(path) for path in (other, federation.files)]
    federation.edit("coordinator", keys[1], keys[0])
    federation.aggregator()
    federation.edit("alice", keys[1], keys[0])
    federation.owners()
    coordinator = federation.coordinator()
    assert coordinator.ends() == 1
    assert "is not the pinned aggregator's" in coordinator.output()
    assert "aggregator_signing_key in this node's file is out of date" in coordinator.output()


def init(directory: Path) -> list[str | Path]:
    return [BIN / "cairn", "init", directory, "--owner", "alice", "--owner", "bob"]


def signing_key_line(directory: Path) -> str:
    lines = (directory / "alice.toml").read_text().splitlines()
    (line,) = [line for line in lines if line.startswith("aggregator_signing_key")]
    return line


def test_a_run_folder_of_another_job_is_not_overwritten(federation: Federation) -> None:
    first = federation.coordinator(gather_seconds=1)
    until((federation.out / "checkpoint.json").exists, "the run has begun")
    first.send(signal.SIGTERM)
    first.ends()
    sentence = mistake(federation.coordinator(settings={"lr": 0.6}))
    assert "holds a run of the job halving with other settings: choose another --out" in sentence


def test_a_model_that_is_a_pickle_is_refused_by_name(federation: Federation) -> None:
    (federation.home / "model.pt").write_bytes(b"PK\x03\x04" + bytes(100))
    sentence = mistake(federation.coordinator(model="model.pt"))
    assert "model.pt" in sentence
    assert "pickle" in sentence


def test_a_floor_above_the_jobs_owners_is_refused(federation: Federation) -> None:
    assert "floor = 3 is more than the 2 owners" in mistake(federation.coordinator(floor=3))


def test_an_owner_that_the_aggregator_does_not_know_is_named(federation: Federation) -> None:
    federation.aggregator()
    coordinator = federation.coordinator(owners=["alice", "bob", "zoe"])
    assert coordinator.ends() == 1
    assert "error: the aggregator does not know zoe" in coordinator.output()
