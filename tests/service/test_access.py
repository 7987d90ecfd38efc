"""Who gets through: every method under every identity, over real TLS, held against the access table."""

import threading
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2, health_pb2_grpc

from cairn.identity.names import Role
from cairn.transport.access import ACCESS
from cairn.transport.health_client import ask_health
from cairn.transport.server import Server
from cairn.v1 import aggregator_pb2, aggregator_pb2_grpc, coordinator_pb2
from cairn.v1 import round_pb2 as pb
from cairn.v1.coordinator_pb2_grpc import add_InvitationServiceServicer_to_server
from coordinator.invitation_service import InvitationService
from coordinator.owner_sessions import OwnerSessions
from tests.service.network import FEDERATION, SECONDS, Network, OpenRound, refused

PERMITTED = {
    "alice": Role.OWNER,
    "mallory": Role.OWNER,  # certified, and not on the roster
    "coordinator": Role.COORDINATOR,
    "rival": Role.COORDINATOR,
    "aggregator": Role.AGGREGATOR,
}
METHODS: dict[str, MethodDescriptor] = {
    f"/{service.full_name}/{method.name}": method
    for file in (aggregator_pb2.DESCRIPTOR, coordinator_pb2.DESCRIPTOR)
    for service in file.services_by_name.values()
    for method in service.methods
}
RELEASE_METHODS = [path for path in METHODS if "ReleaseService" in path]


@pytest.fixture(scope="module")
def invitations(network: Network) -> Iterator[str]:
    """A coordinator's door for owners; returns its address."""
    listener = Server(network.identity("coordinator", Role.COORDINATOR), long_callers=4)
    service = InvitationService(FEDERATION, "job", ["alice"], OwnerSessions())
    listener.add(add_InvitationServiceServicer_to_server, service)
    listener.start(network.coordinator_at)
    yield network.coordinator_at
    listener.stop(0.0)


@pytest.fixture(scope="module")
def opened(network: Network) -> OpenRound:
    """A round for requests to name."""
    return network.job().open()


def address_of(network: Network, method: str, role: Role = Role.OWNER) -> str:
    """Where the method is served for this role."""
    if "InvitationService" in method:
        return network.coordinator_at
    is_release = method in RELEASE_METHODS
    is_release |= "RecordService" in method and role is Role.COORDINATOR
    return network.release_at if is_release else network.intake_at


def call(channel: grpc.Channel, path: str, request: Any, seconds: float | None = SECONDS) -> None:
    """Call a method with one message, and read all that it answers."""
    method = METHODS[path]
    outgoing = "stream" if method.client_streaming else "unary"
    incoming = "stream" if method.server_streaming else "unary"
    multicallable = getattr(channel, f"{outgoing}_{incoming}")(
        path,
        request_serializer=type(request).SerializeToString,
        response_deserializer=GetMessageClass(method.output_type).FromString,
    )
    sent = iter([request]) if method.client_streaming else request
    answer = multicallable(sent, timeout=seconds)
    if method.server_streaming:
        next(answer, None)
        answer.cancel()


def request_for(path: str, opened: OpenRound) -> Any:
    """A request that names a round that exists, where the method asks for one."""
    kind = GetMessageClass(METHODS[path].input_type)
    named = "manifest_digest" in METHODS[path].input_type.fields_by_name
    return kind(manifest_digest=opened.digest) if named else kind()


@pytest.mark.parametrize("who", PERMITTED)
@pytest.mark.parametrize("path", METHODS)
@pytest.mark.usefixtures("invitations")
def test_a_method_answers_the_roles_of_the_access_table_and_no_other(
    network: Network, opened: OpenRound, path: str, who: str
) -> None:
    channel = network.channel(who, address_of(network, path, PERMITTED[who]))
    request = request_for(path, opened if "Abort" not in path else network.job().open())
    if PERMITTED[who] not in ACCESS[path]:
        words = f"{PERMITTED[who]}, which may not call"
        with refused(grpc.StatusCode.PERMISSION_DENIED, words, "NOT_ALLOWED"):
            call(channel, path, request)
        return
    if who == "mallory" and "InvitationService" not in path:
        with refused(grpc.StatusCode.PERMISSION_DENIED, "not on the roster", "UNKNOWN_OWNER"):
            call(channel, path, request)
        return
    try:
        call(channel, path, request)
    except grpc.RpcError as error:
        code = error.code()
        assert code is not grpc.StatusCode.UNIMPLEMENTED
        assert code is not grpc.StatusCode.INTERNAL
        # A coordinator of other jobs gets past the table, and not further.
        assert code is not grpc.StatusCode.PERMISSION_DENIED or who == "rival"


@pytest.mark.parametrize("who", ["stranger", "nobody", "lapsed"])
@pytest.mark.parametrize("path", METHODS)
@pytest.mark.usefixtures("invitations")
def test_no_handshake_without_a_present_certificate_of_the_federations_authority(
    network: Network, opened: OpenRound, path: str, who: str
) -> None:
    channel = network.channel(who, address_of(network, path))
    with refused(grpc.StatusCode.UNAVAILABLE):
        call(channel, path, request_for(path, opened))


@pytest.mark.parametrize("who", ["neighbour", "nameless"])
@pytest.mark.parametrize("path", METHODS)
@pytest.mark.usefixtures("invitations")
def test_a_certificate_that_names_no_node_of_the_federation_is_refused(
    network: Network, opened: OpenRound, path: str, who: str
) -> None:
    channel = network.channel(who, address_of(network, path))
    with refused(grpc.StatusCode.PERMISSION_DENIED, reason="NOT_ALLOWED"):
        call(channel, path, request_for(path, opened))


@pytest.mark.parametrize("path", METHODS)
@pytest.mark.usefixtures("invitations")
def test_a_call_without_a_deadline_is_refused(
    network: Network, opened: OpenRound, path: str
) -> None:
    role = min(ACCESS[path])
    who = "alice" if role is Role.OWNER else "coordinator"
    with refused(grpc.StatusCode.INVALID_ARGUMENT, "no deadline", "NO_DEADLINE"):
        address = address_of(network, path, role)
        call(network.channel(who, address), path, request_for(path, opened), None)


@pytest.mark.parametrize("path", METHODS)
@pytest.mark.usefixtures("invitations")
def test_what_is_served_for_one_role_is_not_served_at_the_others_address(
    network: Network, opened: OpenRound, path: str
) -> None:
    if "RecordService" in path:  # each role has its own port for it
        for who, address in (("alice", network.release_at), ("coordinator", network.intake_at)):
            with refused(grpc.StatusCode.PERMISSION_DENIED, "this port is for", "NOT_ALLOWED"):
                call(network.channel(who, address), path, request_for(path, opened))
        return
    there = {
        network.intake_at: network.release_at,
        network.release_at: network.coordinator_at,
        network.coordinator_at: network.intake_at,
    }[address_of(network, path)]
    with refused(grpc.StatusCode.UNIMPLEMENTED):
        call(network.channel("alice", there), path, request_for(path, opened))


def test_an_owner_outside_the_cohort_learns_and_changes_nothing(network: Network) -> None:
    opened = network.job().open(["alice", "bob"])
    statement = aggregator_pb2.GetStatementRequest(manifest_digest=opened.digest)
    attempts: list[Callable[[str], object]] = [
        opened.join,
        lambda who: opened.decline(who, pb.REASON_STOPPING),
        lambda who: opened.push(who, bytes(16)),
        opened.receipt,
        lambda who: network.record(who).GetStatement(statement, timeout=SECONDS),
    ]
    for who, words in (("carol", "cohort"), ("mallory", "not on the roster")):
        for attempt in attempts:
            with refused(grpc.StatusCode.PERMISSION_DENIED, words):
                attempt(who)


def test_another_coordinator_cannot_touch_a_job_that_is_not_its_own(network: Network) -> None:
    job = network.job()
    opened = job.open()
    job.coordinator = network.release("rival")
    for attempt in (job.register, job.open, opened.abort, opened.collect, opened.ends):
        with refused(grpc.StatusCode.PERMISSION_DENIED, "another coordinator's job"):
            attempt()
    statement = aggregator_pb2.GetStatementRequest(manifest_digest=opened.digest)
    with refused(grpc.StatusCode.PERMISSION_DENIED):
        network.record("rival").GetStatement(statement, timeout=SECONDS)


@pytest.mark.parametrize("who", PERMITTED)
def test_everybody_who_is_admitted_may_ask_for_health_and_nobody_may_follow_it(
    network: Network, who: str
) -> None:
    stub: Any = health_pb2_grpc.HealthStub(network.channel(who, network.intake_at))
    if who == "mallory":
        with refused(grpc.StatusCode.PERMISSION_DENIED, "not on the roster", "UNKNOWN_OWNER"):
            stub.Check(health_pb2.HealthCheckRequest(), timeout=SECONDS)
        return
    answer = stub.Check(health_pb2.HealthCheckRequest(), timeout=SECONDS)
    assert answer.status == health_pb2.HealthCheckResponse.SERVING
    with refused(grpc.StatusCode.PERMISSION_DENIED):
        next(stub.Watch(health_pb2.HealthCheckRequest(), timeout=SECONDS))


def test_a_node_that_cannot_work_says_so_until_it_can(network: Network) -> None:
    can_work = threading.Event()
    identity = network.identity("coordinator", Role.COORDINATOR)
    listener = Server(identity, long_callers=1, can_work=can_work.is_set)
    port = listener.start("localhost:0")
    try:
        channel = network.channel("alice", f"localhost:{port}")
        assert not ask_health(channel, SECONDS).serving
        can_work.set()
        assert ask_health(channel, SECONDS).serving
    finally:
        listener.stop(0.0)


def test_nothing_is_answered_without_tls(network: Network) -> None:
    with grpc.insecure_channel(network.intake_at) as channel:
        stub: Any = aggregator_pb2_grpc.IntakeServiceStub(channel)
        with refused(grpc.StatusCode.UNAVAILABLE):
            stub.JoinRound(aggregator_pb2.JoinRoundRequest(), timeout=SECONDS)


def test_an_aggregator_with_another_certificate_is_not_spoken_to(network: Network) -> None:
    """An owner trusts the one pinned certificate, not whatever its authority has issued."""
    pinned = (network.directory / "coordinator/node.crt").read_bytes()
    key, certificate = network.credentials["alice"]
    credentials = grpc.ssl_channel_credentials(pinned, key, certificate)
    with grpc.secure_channel(network.intake_at, credentials) as channel:
        stub: Any = aggregator_pb2_grpc.IntakeServiceStub(channel)
        with refused(grpc.StatusCode.UNAVAILABLE, "CERTIFICATE_VERIFY_FAILED"):
            stub.JoinRound(aggregator_pb2.JoinRoundRequest(), timeout=SECONDS)
