"""The transport kit's settings."""

from pathlib import Path

import grpc
import pytest

from cairn import errors
from cairn.guard import LONG_CALLS_OF_ONE_CALLER, SHORT_CALLS_OF_ONE_CALLER, STATUS
from cairn.rpc import _DIALLING, _LISTENING


@pytest.mark.parametrize("option", sorted({name for name, _ in [*_LISTENING, *_DIALLING]}))
def test_grpc_knows_every_option_by_the_name_that_is_used(option: str) -> None:
    """An option that it does not know is ignored without a word."""
    (library,) = (Path(grpc.__file__).parent / "_cython").glob("cygrpc*.so")
    assert option.encode() + b"\0" in library.read_bytes()


def test_pings_come_less_often_than_the_other_side_tolerates() -> None:
    dialling, listening = dict(_DIALLING), dict(_LISTENING)
    tolerated = listening["grpc.http2.min_ping_interval_without_data_ms"]
    assert dialling["grpc.keepalive_time_ms"] > tolerated


def test_every_error_that_a_call_can_raise_has_a_status_of_its_own_meaning() -> None:
    """What has none would be answered INTERNAL; a UsageError is raised only before a node listens."""
    kinds = {kind for kind in vars(errors).values() if isinstance(kind, type)}
    kinds = {kind for kind in kinds if issubclass(kind, errors.CairnError)}
    assert kinds - set(STATUS) == {errors.CairnError, errors.UsageError}
    assert grpc.StatusCode.INTERNAL not in STATUS.values()


def test_a_node_has_no_more_calls_under_way_than_one_connection_may_carry() -> None:
    streams = dict(_LISTENING)["grpc.max_concurrent_streams"]
    assert streams >= LONG_CALLS_OF_ONE_CALLER + SHORT_CALLS_OF_ONE_CALLER
