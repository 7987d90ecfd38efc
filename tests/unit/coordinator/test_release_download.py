"""What a coordinator takes for a release, of all that an aggregator may send it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from cairn.errors import InvalidMessage, Unavailable
from cairn.model.safetensors_reader import read_model
from cairn.model.safetensors_writer import ModelWriter
from cairn.model.schema import Schema, TensorSpec
from cairn.protocol.statements import STATEMENT, sign
from cairn.v1 import aggregator_pb2
from cairn.v1 import round_pb2 as pb
from coordinator.release_download import Collecting, Wanted

KEY = Ed25519PrivateKey.generate()
SCHEMA = Schema.of([TensorSpec("w", "F32", (2,))])
MODEL = np.array([3.0, 4.0], np.float32).tobytes()
ROUND = b"m" * 32


def header(phase: "pb.Phase", manifest_digest: bytes = ROUND) -> Any:
    statement = pb.ReleaseStatement(
        manifest_digest=manifest_digest,
        federation="clinics",
        job="tumours",
        round=3,
        phase=phase,
        release_digest=SCHEMA.digest(MODEL),
        base_digest=b"b" * 32,
        contributors=3,
        rule=pb.RULE_MEAN,
        weighting=pb.WEIGHTING_EQUAL,
        encoding=pb.ENCODING_WHOLE,
        ledger_head=bytes(32),
        floor=3,
        commitments=[bytes([number]) * 32 for number in range(3)],
    )
    signed = sign(KEY, STATEMENT, statement.SerializeToString())
    return aggregator_pb2.CollectReleaseResponse(
        header=aggregator_pb2.ReleaseHeader(statement=signed, total_bytes=len(MODEL))
    )


class Sending:
    """An aggregator that sends these parts, and from where it was asked to go on."""

    def __init__(self, *parts: Any) -> None:
        self.parts = parts
        self.offsets: list[int] = []

    def CollectRelease(  # noqa: N802 - as the stub has it
        self, request: aggregator_pb2.CollectReleaseRequest, timeout: float
    ) -> "Sending":
        assert timeout
        self.offsets.append(request.offset)
        self._left = iter(self.parts)
        return self

    def __iter__(self) -> Iterator[Any]:
        return self._left

    def __next__(self) -> Any:
        return next(self._left)

    def cancel(self) -> None:
        raise AssertionError("it is not idle")


def collecting(folder: Path, stub: Sending) -> Collecting:
    def begin(schema: Schema) -> ModelWriter:
        return ModelWriter(folder / "model.safetensors", schema)

    return Collecting(stub, KEY.public_key(), Wanted(ROUND, 1), SCHEMA, begin)


def test_a_model_that_breaks_off_goes_on_where_it_was(tmp_path: Path) -> None:
    stub = Sending(header(pb.PHASE_TRAIN), memoryview(MODEL[:4]))
    download = collecting(tmp_path, stub)
    with pytest.raises(Unavailable, match="incomplete"):
        download.fetch()
    stub.parts = (header(pb.PHASE_TRAIN), memoryview(MODEL[4:]))
    release = download.fetch()
    assert stub.offsets == [0, 4]
    assert release.model is not None
    release.model.keep()
    assert bytes(read_model(tmp_path / "model.safetensors")[1]) == MODEL


def test_a_damaged_model_is_collected_anew(tmp_path: Path) -> None:
    stub = Sending(header(pb.PHASE_TRAIN), memoryview(bytes(len(MODEL))))
    download = collecting(tmp_path, stub)
    for _ in range(2):
        with pytest.raises(Unavailable, match="damaged"):
            download.fetch()
    assert stub.offsets == [0, 0]
    assert list(tmp_path.iterdir()) == []


def test_an_evaluation_has_a_statement_and_no_model(tmp_path: Path) -> None:
    release = collecting(tmp_path, Sending(header(pb.PHASE_EVALUATE))).fetch()
    assert (release.statement.round, release.model) == (3, None)


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ([], "does not begin with its header"),
        ([memoryview(MODEL)], "does not begin with its header"),
        ([aggregator_pb2.CollectReleaseResponse()], "does not begin with its header"),
        ([header(pb.PHASE_TRAIN, b"x" * 32)], "that of another round"),
        ([header(pb.PHASE_EVALUATE), memoryview(MODEL)], "other bytes than the schema"),
        ([header(pb.PHASE_TRAIN), memoryview(b"")], "other bytes than the schema"),
        ([header(pb.PHASE_TRAIN), header(pb.PHASE_TRAIN)], "other bytes than the schema"),
    ],
    ids=[
        "nothing",
        "no header",
        "an empty message",
        "another round",
        "bytes of an evaluation",
        "an empty piece",
        "a second header",
    ],
)
def test_anything_else_is_no_release(tmp_path: Path, parts: list[Any], words: str) -> None:
    download = collecting(tmp_path, Sending(*parts))
    with pytest.raises(InvalidMessage, match=words):
        download.fetch()
    download.discard()
    assert list(tmp_path.iterdir()) == []
