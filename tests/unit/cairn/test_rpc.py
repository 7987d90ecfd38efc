"""The transport kit's settings."""

from pathlib import Path

import grpc
import pytest

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
