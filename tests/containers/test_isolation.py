"""Who can reach whom and as whom, and what a node's process may do, looked at from inside the containers."""

import json
from collections.abc import Iterator

import pytest

from tests.containers.compose import NODES, Ended, Project, docker

pytestmark = [pytest.mark.containers, pytest.mark.timeout(600)]

# Prints the ports of a host that accept a connection, and how many were tried.
TRY_EVERY_PORT = """
import socket, sys
address = socket.gethostbyname({host!r})
accepted, tried = [], 0
for port in range(1, 65536):
    with socket.socket() as end:
        end.settimeout(1)
        tried += 1
        if end.connect_ex((address, port)) == 0:
            accepted.append(port)
print(tried, accepted)
"""

# The state of a listening socket is 0A. 127.0.0.11 (0B00007F) is the engine's own resolver.
LISTENING = """
rows = [line.split() for name in ("tcp", "tcp6") for line in list(open(f"/proc/net/{name}"))[1:]]
print([row[1] for row in rows if row[3] == "0A" and not row[1].startswith("0B00007F")])
"""

# Calls a method of the aggregator with the identity of the container it runs in.
CALL = """
from datetime import UTC, datetime
from pathlib import Path
import cairn.transport.channel, cairn.transport.status
from cairn.errors import CairnError
from cairn.identity.names import node_named_in; from cairn.identity.credentials import load_identity
from cairn.identity.pem import load_certificate
from cairn.config import IdentityFiles
from cairn.v1 import aggregator_pb2, aggregator_pb2_grpc
home = Path("/nodes/{node}/{node}")
files = IdentityFiles(
    certificate=home / "node.crt", key=home / "node.key", authority=home / "authority.crt"
)
node = node_named_in(load_certificate(files.certificate))
identity = load_identity(files, node, datetime.now(UTC))
channel = cairn.transport.channel.dial("aggregator:{port}", identity)
try:
    with cairn.transport.status.translated():
        stub = aggregator_pb2_grpc.{service}Stub(channel)
        print(stub.{method}(aggregator_pb2.{method}Request(), timeout=10))
except CairnError as error:
    print(type(error).__name__, error)
"""


@pytest.mark.parametrize("owner", ["alice", "bob"])
def test_the_coordinators_container_cannot_open_a_connection_to_an_owner(
    standing: Project, owner: str
) -> None:
    found = standing.python("coordinator", TRY_EVERY_PORT.format(host=owner))
    assert found.strip() == "65535 []"


@pytest.mark.parametrize("owner", ["alice", "bob"])
def test_an_owner_listens_on_nothing(standing: Project, owner: str) -> None:
    assert standing.python(owner, LISTENING).strip() == "[]"


def test_the_same_look_finds_the_ports_of_coordinator_and_aggregator(standing: Project) -> None:
    for service, ports in (("coordinator", {"1D11"}), ("aggregator", {"1D13", "1D14"})):
        listening = standing.python(service, LISTENING)
        assert {port for port in ("1D11", "1D13", "1D14") if port in listening} == ports


def test_an_owner_can_neither_name_nor_reach_another(standing: Project) -> None:
    networks = standing.container("bob")["NetworkSettings"]["Networks"]
    (address,) = [network["IPAddress"] for network in networks.values()]
    code = f"""
import socket
for host in ('bob', {address!r}):
    try:
        socket.create_connection((host, 7443), timeout=5)
    except OSError as error:
        print(type(error).__name__)
    else:
        print("reached")
"""
    name, number = standing.python("alice", code).split()
    assert name == "gaierror"
    assert number in {"OSError", "TimeoutError"}  # no route, or no answer; a refusal is an answer


@pytest.fixture(scope="module")
def outsider() -> Iterator[str]:
    """The address of a container that is no part of the federation and answers on port 8000."""
    run = ("run", "--detach", "--rm", "cairn-aggregator", "python", "-u", "-m", "http.server")
    identity = docker(*run).strip()
    try:
        networks = json.loads(docker("inspect", identity))[0]["NetworkSettings"]["Networks"]
        yield networks["bridge"]["IPAddress"]
    finally:
        docker("kill", identity)


def test_no_node_has_a_way_outside(standing: Project, outsider: str) -> None:
    code = f"""
import socket, time
end = time.monotonic() + {{seconds}}
reached = False
while not reached and time.monotonic() < end:
    with socket.socket() as probe:
        probe.settimeout(1)
        reached = probe.connect_ex(({outsider!r}, 8000)) == 0
print(reached)
"""
    elsewhere = docker("run", "--rm", "cairn-aggregator", "python", "-c", code.format(seconds=30))
    assert elsewhere.strip() == "True"
    for service in NODES:
        assert standing.python(service, code.format(seconds=2)).strip() == "False"


def test_a_nodes_process_has_no_root_no_capability_and_a_read_only_root(standing: Project) -> None:
    code = """
import os
lines = dict(line.split(":", 1) for line in open("/proc/1/status"))
print(lines["Uid"].split()[0], lines["CapEff"].strip(), lines["CapBnd"].strip(), lines["NoNewPrivs"].strip())
print([path for path in ("/", "/opt/cairn", "/etc", "/nodes", "/runs") if os.access(path, os.W_OK)])
"""
    for service in NODES:
        status, writable = standing.python(service, code).splitlines()
        assert status == f"10001 {'0' * 16} {'0' * 16} 1"
        assert writable == ("['/runs']" if service in {"coordinator", "alice", "bob"} else "[]")


def test_a_nodes_container_holds_its_own_keys_and_no_others(standing: Project) -> None:
    code = "import glob; print(sorted(glob.glob('/nodes/**/*.key', recursive=True)))"
    for service in NODES:
        keys = [f"/nodes/{service}/{service}/node.key"]
        keys += ["/nodes/aggregator/aggregator/signing.key"] if service == "aggregator" else []
        assert standing.python(service, code).strip() == str(keys)


def test_every_node_becomes_healthy(standing: Project) -> None:
    for service in NODES:
        config = f"/nodes/{service}/{service}.toml"
        assert "is serving" in standing.must(
            "exec", "-T", service, "cairn", "health", "--config", config
        )
    assert standing.container("aggregator")["State"]["Health"]["Status"] == "healthy"


def started_with(project: Project, program: str, node: str, other: str) -> Ended:
    """Start a node's program with the certificate and the key of another node."""
    script = (
        f'sed \'s#"{node}/node#"/nodes/{other}/{other}/node#; s#"{node}/#"/nodes/{node}/{node}/#\''
        f" /nodes/{node}/{node}.toml >/tmp/{node}.toml; exec {program} --config /tmp/{node}.toml"
    )
    # The one service that sees the keys of all nodes.
    return project("run", "--rm", "--no-deps", "-T", "certificates", "sh", "-c", script)


@pytest.mark.parametrize(
    ("program", "node", "other", "found", "wanted"),
    [
        ("aggregator-node", "aggregator", "bob", "owner/bob", "aggregator/aggregator"),
        ("owner-node", "bob", "coordinator", "coordinator/coordinator", "owner/bob"),
        ("owner-node", "bob", "alice", "owner/alice", "owner/bob"),
    ],
)
def test_a_node_with_another_nodes_certificate_does_not_start_and_says_whose_it_is(
    standing: Project, program: str, node: str, other: str, found: str, wanted: str
) -> None:
    ended = started_with(standing, program, node, other)
    said = ended.text + ended.stderr
    assert ended.code == 2, said
    assert f"is the certificate of {found} in federation tutorial" in said
    assert f"this node is {wanted} in federation tutorial" in said


@pytest.mark.parametrize(
    ("node", "name", "port", "service", "method"),
    [
        ("bob", "owner/bob", 7444, "ReleaseService", "OpenRound"),
        ("coordinator", "coordinator/coordinator", 7443, "IntakeService", "JoinRound"),
    ],
)
def test_the_aggregator_refuses_a_call_of_another_role_by_name(
    standing: Project, node: str, name: str, port: int, service: str, method: str
) -> None:
    code = CALL.format(node=node, port=port, service=service, method=method)
    answer = standing.python(node, code)
    role = name.partition("/")[0]
    assert answer.startswith(
        f"CallerNotAllowed {name} in federation tutorial has the role {role}, which may not call"
    )
    assert method in answer
