"""A release on its way: what is verified, and what is kept of one that breaks off."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from cairn.errors import CairnError, InvalidMessage, Unavailable
from cairn.model.safetensors_reader import read_model
from cairn.model.safetensors_writer import ModelWriter
from cairn.model.schema import Schema, TensorSpec
from cairn.protocol.aggregation import Aggregation, aggregation_to_pb
from cairn.protocol.statements import STATEMENT, sign
from cairn.v1 import aggregator_pb2
from cairn.v1 import round_pb2 as pb
from coordinator.release_download import Release, ReleaseDownload

KEY = Ed25519PrivateKey.generate()
SCHEMA = Schema.of([TensorSpec("w", "F32", (4,))])
VALUES = bytes(range(16))
ROUND = bytes(range(32))

Part = aggregator_pb2.CollectReleaseResponse | memoryview
Stream = list[Part | CairnError]


def header(
    phase: "pb.Phase" = pb.PHASE_TRAIN, manifest_digest: bytes = ROUND, values: bytes = VALUES
) -> aggregator_pb2.CollectReleaseResponse:
    statement = pb.ReleaseStatement(
        manifest_digest=manifest_digest,
        phase=phase,
        release_digest=SCHEMA.digest(values),
        base_digest=bytes(32),
        contributors=2,
        aggregation=aggregation_to_pb(Aggregation()),
        weighting=pb.WEIGHTING_EQUAL,
        encoding=pb.ENCODING_WHOLE,
        ledger_head=bytes(32),
        floor=2,
        commitments=[b"a" * 32, b"b" * 32],
    )
    signed = sign(KEY, STATEMENT, statement.SerializeToString(deterministic=True))
    return aggregator_pb2.CollectReleaseResponse(
        header=aggregator_pb2.ReleaseHeader(statement=signed)
    )


class Parts:
    """The parts of one answer; an error ends it."""

    def __init__(self, parts: Stream) -> None:
        self._parts = iter(parts)

    def __iter__(self) -> Iterator[Part]:
        return self

    def __next__(self) -> Part:
        part = next(self._parts)
        if isinstance(part, CairnError):
            raise part
        return part

    def cancel(self) -> None:
        raise AssertionError("a stream that goes on is not cancelled")


class Aggregator:
    """Answers each call with the next of its streams."""

    def __init__(self, *streams: Stream) -> None:
        self.offsets: list[int] = []
        self._streams = iter(streams)

    def CollectRelease(  # noqa: N802 - as the stub has it
        self, request: aggregator_pb2.CollectReleaseRequest, timeout: float
    ) -> Parts:
        del timeout
        assert (request.manifest_digest, request.epoch) == (ROUND, 3)
        self.offsets.append(request.offset)
        return Parts(next(self._streams))


class Download:
    """A download into a folder, and what it has begun."""

    def __init__(self, folder: Path, *streams: Stream) -> None:
        self.aggregator = Aggregator(*streams)
        self.begun: list[ModelWriter] = []
        self.path = folder / "model.safetensors"
        stub: Any = self.aggregator
        request = aggregator_pb2.CollectReleaseRequest(manifest_digest=ROUND, epoch=3)
        self._download = ReleaseDownload(stub, KEY.public_key(), request, SCHEMA, self._begin)

    def _begin(self, schema: Schema) -> ModelWriter:
        self.begun.append(ModelWriter(self.path, schema))
        return self.begun[-1]

    def fetch(self) -> Release:
        return self._download.fetch()

    def discard(self) -> None:
        self._download.discard()


def chunk(values: bytes) -> memoryview:
    return memoryview(values)


def test_a_release_is_whole_and_not_kept_before_its_caller_says_so(tmp_path: Path) -> None:
    download = Download(tmp_path, [header(), chunk(VALUES[:8]), chunk(VALUES[8:])])
    release = download.fetch()
    assert release.model is not None
    assert not download.path.exists()
    release.model.keep()
    assert read_model(download.path) == (SCHEMA, memoryview(VALUES))


def test_a_release_that_broke_off_goes_on_with_the_byte_after_the_last(tmp_path: Path) -> None:
    download = Download(
        tmp_path,
        [header(), chunk(VALUES[:8]), Unavailable("the connection is gone")],
        [header(), chunk(VALUES[8:12])],
        [header(), chunk(VALUES[12:])],
    )
    for what in ("gone", "incomplete"):
        with pytest.raises(Unavailable, match=what):
            download.fetch()
    assert download.fetch().model is not None
    assert download.aggregator.offsets == [0, 8, 12]
    assert len(download.begun) == 1
    download.discard()


def test_a_release_with_other_bytes_than_its_statement_says_is_fetched_anew(tmp_path: Path) -> None:
    download = Download(
        tmp_path, [header(), chunk(VALUES[::-1])], [header(), chunk(VALUES)], [header()]
    )
    with pytest.raises(Unavailable, match="damaged"):
        download.fetch()
    assert list(tmp_path.iterdir()) == []
    assert download.fetch().model is not None
    assert download.aggregator.offsets == [0, 0]
    download.discard()


def test_the_release_of_an_evaluation_has_no_model_and_begins_no_file(tmp_path: Path) -> None:
    download = Download(tmp_path, [header(pb.PHASE_EVALUATE)])
    assert download.fetch().model is None
    assert download.begun == []


@pytest.mark.parametrize(
    ("stream", "what"),
    [
        ([], "its header"),
        ([chunk(VALUES)], "its header"),
        ([aggregator_pb2.CollectReleaseResponse()], "its header"),
        ([header(manifest_digest=bytes(32))], "another round"),
        ([header(pb.PHASE_EVALUATE), chunk(VALUES)], "other bytes"),
        ([header(), chunk(b"")], "other bytes"),
        ([header(), header()], "other bytes"),
    ],
)
def test_what_is_no_release_of_the_round_is_refused(
    tmp_path: Path, stream: Stream, what: str
) -> None:
    download = Download(tmp_path, stream)
    with pytest.raises(InvalidMessage, match=what):
        download.fetch()
    download.discard()


def test_nothing_is_left_of_a_release_that_is_given_up(tmp_path: Path) -> None:
    download = Download(tmp_path, [header(), chunk(VALUES[:8])])
    download.discard()  # nothing has come yet
    with pytest.raises(Unavailable):
        download.fetch()
    download.discard()
    assert list(tmp_path.iterdir()) == []
