"""A port that serves one role lets others ask for its health alone."""

from pathlib import Path
from typing import Any

import grpc
import pytest

from cairn.identity.names import Role
from cairn.transport.health_client import ask_health
from cairn.v1 import aggregator_pb2, aggregator_pb2_grpc
from tests.service.door import AGGREGATOR, ALICE, COORDINATOR, SECONDS, Door, Ward, dialled


def test_a_port_for_owners_serves_no_coordinator(tmp_path: Path) -> None:
    ward = Ward(tmp_path)
    with Door(ward.home(AGGREGATOR), serves=Role.OWNER) as door:
        owner, coordinator = (dialled(door, ward.home(node)) for node in (ALICE, COORDINATOR))
        with owner.channel, coordinator.channel:
            assert owner.join() == 7
            stub: Any = aggregator_pb2_grpc.RecordServiceStub(coordinator.channel)
            with pytest.raises(grpc.RpcError) as raised:
                stub.GetStatement(aggregator_pb2.GetStatementRequest(), timeout=SECONDS)
            assert ask_health(coordinator.channel, SECONDS).serving
    error: Any = raised.value
    assert error.code() is grpc.StatusCode.PERMISSION_DENIED
    assert "this port is for nodes of the role owner" in error.details()
