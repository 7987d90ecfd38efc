"""A node that comes with another node's certificate is refused, and told whose it is."""

import pytest

from tests.containers.compose import Ended, Project

pytestmark = [pytest.mark.containers, pytest.mark.timeout(600)]

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
