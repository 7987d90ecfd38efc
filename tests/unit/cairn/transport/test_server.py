"""The transport kit's settings."""

from pathlib import Path
from typing import Any

import grpc
import pytest

from cairn import errors
from cairn.transport.channel import _DIALLING
from cairn.transport.pools import LONG_CALLS_OF_ONE_CALLER, SHORT_CALLS_OF_ONE_CALLER
from cairn.transport.server import _LISTENING, _taking, _window
from cairn.transport.status import STATUS, translated, wire_name
from cairn.v1 import round_pb2 as pb


@pytest.mark.parametrize(
    "option",
    sorted({name for name, _ in [*_LISTENING, *_DIALLING, *_taking(1), *_window(1)]}),
)
def test_grpc_knows_every_option_by_the_name_that_is_used(option: str) -> None:
    """An option that it does not know is ignored without a word."""
    (library,) = (Path(grpc.__file__).parent / "_cython").glob("cygrpc*.so")
    assert option.encode() + b"\0" in library.read_bytes()


def test_no_node_hangs_up_for_another_ones_pings() -> None:
    """A listener holds none against a peer, however often they come."""
    assert dict(_LISTENING)["grpc.http2.max_ping_strikes"] == 0


def test_every_error_that_a_call_can_raise_has_a_status_of_its_own_meaning() -> None:
    """What has none would be answered INTERNAL.

    A UsageError is raised only before a node listens, and PeerUntrusted only by the side that dials.
    """
    kinds = {kind for kind in vars(errors).values() if isinstance(kind, type)}
    kinds = {kind for kind in kinds if issubclass(kind, errors.CairnError)}
    assert kinds - set(STATUS) == {errors.CairnError, errors.UsageError, errors.PeerUntrusted}
    assert grpc.StatusCode.INTERNAL not in STATUS.values()


def test_a_node_has_no_more_calls_under_way_than_one_connection_may_carry() -> None:
    streams = dict(_LISTENING)["grpc.max_concurrent_streams"]
    assert streams >= LONG_CALLS_OF_ONE_CALLER + SHORT_CALLS_OF_ONE_CALLER


def test_grpc_repeats_no_call_by_itself() -> None:
    """It does so up to a size and without a word; who calls knows what may be repeated."""
    assert dict(_DIALLING)["grpc.enable_retries"] == 0


class Failed(grpc.RpcError):
    """How a call of gRPC's ends, with what the guard of a node adds to a refusal."""

    def __init__(self, code: grpc.StatusCode, details: str, **trailing: str) -> None:
        self._code, self._details = code, details
        self._trailing = tuple((f"cairn-{key}", value) for key, value in trailing.items())

    def code(self) -> grpc.StatusCode:
        return self._code

    def details(self) -> str:
        return self._details

    def trailing_metadata(self) -> Any:
        return self._trailing


def translation(error: grpc.RpcError) -> errors.CairnError:
    with pytest.raises(errors.CairnError) as raised, translated():
        raise error
    return raised.value


PASSING = {"UNAVAILABLE", "DEADLINE_EXCEEDED", "CANCELLED", "UNKNOWN"}
FINAL = {
    "ABORTED",
    "ALREADY_EXISTS",
    "DATA_LOSS",
    "FAILED_PRECONDITION",
    "INTERNAL",
    "INVALID_ARGUMENT",
    "NOT_FOUND",
    "OUT_OF_RANGE",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "UNAUTHENTICATED",
    "UNIMPLEMENTED",
}


def test_the_tables_have_every_code_that_a_failed_call_may_have() -> None:
    assert {"OK"} | PASSING | FINAL == {code.name for code in grpc.StatusCode}


@pytest.mark.parametrize("code", sorted(PASSING))
def test_what_no_node_has_said_may_pass(code: str) -> None:
    error = translation(Failed(grpc.StatusCode[code], "the stream is gone"))
    assert type(error) is errors.Unavailable
    assert str(error) == "the stream is gone"


@pytest.mark.parametrize("code", sorted(FINAL))
def test_a_code_that_another_try_would_meet_again_is_final(code: str) -> None:
    error = translation(Failed(grpc.StatusCode[code], "and so it stays"))
    assert not isinstance(error, errors.Unavailable)
    assert "and so it stays" in str(error)


@pytest.mark.parametrize(("kind", "code"), STATUS.items())
def test_a_refusal_arrives_as_the_error_that_the_node_raised(
    kind: type[errors.CairnError], code: grpc.StatusCode
) -> None:
    """Also RESOURCE_EXHAUSTED: what a quota refuses is LimitExceeded, and its caller knows whether to wait."""
    error = translation(Failed(code, "no", error=wire_name(kind), reason="TOO_MUCH"))
    assert type(error) is kind
    assert error.reason == pb.REASON_TOO_MUCH
