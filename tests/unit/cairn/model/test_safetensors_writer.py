"""Model files that are there whole or not at all."""

import errno
import os
import threading
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from blake3 import blake3
from numpy.typing import NDArray
from safetensors.numpy import load_file, save

from cairn.errors import InvalidMessage
from cairn.model.safetensors_writer import ModelWriter, write_model
from cairn.model.schema import CHUNK_BYTES, Schema, TensorSpec
from cairn.storage.files import write_atomically
from tests.scenarios.processes import until

STATE: dict[str, NDArray[Any]] = {
    "b.weight": np.arange(12, dtype=np.float32).reshape(3, 4),
    "a.bias": np.array([0.5, -1.5], np.float32),
    "steps": np.array(7, np.int64),
    "mask": np.array([True, False, True]),
    "empty": np.zeros((0, 3), np.float16),
}
SCHEMA = Schema.of(
    [
        TensorSpec("b.weight", "F32", (3, 4)),
        TensorSpec("a.bias", "F32", (2,)),
        TensorSpec("steps", "I64", ()),
        TensorSpec("mask", "BOOL", (3,)),
        TensorSpec("empty", "F16", (0, 3)),
    ]
)
FILE = save(STATE)  # what safetensors itself writes
VALUES = FILE[8 + int.from_bytes(FILE[:8], "little") :]
OLD = b"the model of the round before"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    path.write_bytes(OLD)
    return path


def only(path: Path) -> bytes:
    """The content of a file that must be the only one in its directory."""
    assert [found.name for found in path.parent.iterdir()] == [path.name]
    return path.read_bytes()


def test_the_file_and_its_digest_are_those_of_safetensors(path: Path) -> None:
    assert write_model(path, SCHEMA, VALUES) == blake3(FILE).digest()
    assert only(path) == FILE
    assert {name: values.tolist() for name, values in load_file(path).items()} == {
        name: values.tolist() for name, values in STATE.items()
    }


@pytest.mark.parametrize("step", [1, 5, len(VALUES)])
def test_a_model_that_arrives_in_pieces_is_the_same_file(path: Path, step: int) -> None:
    with ModelWriter(path, SCHEMA) as new:
        for begin in range(0, len(VALUES), step):
            assert (new.written, new.missing) == (begin, len(VALUES) - begin)
            new.write(memoryview(VALUES)[begin : begin + step])
        new.keep()
        assert new.digest() == blake3(FILE).digest()
    assert only(path) == FILE


def test_a_model_of_more_than_one_chunk_is_written_whole(path: Path) -> None:
    schema = Schema.of([TensorSpec("t", "U8", (2 * CHUNK_BYTES + 3,))])
    values = np.random.default_rng(1).integers(0, 256, 2 * CHUNK_BYTES + 3, np.uint8)
    digest = write_model(path, schema, values.tobytes())
    assert only(path) == save({"t": values})
    assert digest == blake3(path.read_bytes()).digest()


def test_a_model_without_bytes_is_a_file_too(path: Path) -> None:
    schema = Schema.of([TensorSpec("empty", "F32", (0,))])
    assert write_model(path, schema, b"") == blake3(save({"empty": np.zeros(0, "<f4")})).digest()
    assert only(path) == save({"empty": np.zeros(0, np.float32)})


def test_until_it_is_kept_the_path_holds_what_it_held_before(path: Path) -> None:
    with ModelWriter(path, SCHEMA) as new:
        new.write(VALUES)
        assert new.digest() == blake3(FILE).digest()
        assert path.read_bytes() == OLD
        new.keep()
        assert path.read_bytes() == FILE
    assert only(path) == FILE


def test_what_is_not_kept_leaves_nothing_behind(path: Path) -> None:
    with ModelWriter(path, SCHEMA) as new:
        new.write(VALUES)
    assert only(path) == OLD
    broken = ModelWriter(path, SCHEMA)
    with pytest.raises(OSError, match="broken"), broken:
        raise OSError("broken")
    assert only(path) == OLD


def test_to_discard_it_after_it_was_kept_does_nothing(path: Path) -> None:
    new = ModelWriter(path, SCHEMA)
    new.write(VALUES)
    new.keep()
    new.discard()
    new.discard()
    assert only(path) == FILE


def test_more_bytes_than_the_schema_has_are_refused(path: Path) -> None:
    with ModelWriter(path, SCHEMA) as new:
        new.write(VALUES[:-1])
        with pytest.raises(InvalidMessage, match="more bytes than its schema"):
            new.write(b"..")
        new.write(VALUES[-1:])
        assert new.digest() == blake3(FILE).digest()
        with pytest.raises(InvalidMessage):
            new.write(b".")
    assert only(path) == OLD


def test_fewer_bytes_than_the_schema_has_are_not_kept(path: Path) -> None:
    with ModelWriter(path, SCHEMA) as new:
        new.write(VALUES[:-1])
        with pytest.raises(InvalidMessage, match="lacks 1 bytes"):
            new.keep()
    assert only(path) == OLD


@pytest.mark.parametrize("values", [VALUES[:-1], VALUES + b".", b""])
def test_a_payload_of_another_size_is_refused_before_anything_is_written(
    path: Path, values: bytes
) -> None:
    with pytest.raises(InvalidMessage, match=f"have {len(values)} bytes, not {len(VALUES)}"):
        write_model(path, SCHEMA, values)
    assert only(path) == OLD


def test_a_disk_that_fails_leaves_the_old_file_and_nothing_else(path: Path) -> None:
    for step in ("fsync", "replace"):
        fails = mock.patch.object(os, step, side_effect=OSError(28, "no space left"))
        with fails, pytest.raises(OSError, match="no space left"):
            write_model(path, SCHEMA, VALUES)
        assert only(path) == OLD
        with fails, pytest.raises(OSError, match="no space left"):
            write_atomically(path, [b"new"])
        assert only(path) == OLD


def test_a_file_is_on_the_disk_before_it_takes_the_place_of_the_old_one(path: Path) -> None:
    """Else a power cut could leave neither: the name of the new file and none of its bytes."""
    steps = []

    def fsync(descriptor: int) -> None:
        target = Path(f"/proc/self/fd/{descriptor}").readlink()
        steps.append(("on the disk", target == path.parent, path.read_bytes()))

    with mock.patch.object(os, "fsync", fsync):
        write_model(path, SCHEMA, VALUES)
        write_atomically(path, [b"ne", b"w"])
    assert steps == [
        ("on the disk", False, OLD),
        ("on the disk", True, FILE),
        ("on the disk", False, FILE),
        ("on the disk", True, b"new"),
    ]
    assert only(path) == b"new"


def test_whoever_has_the_old_file_open_goes_on_to_read_it_whole(path: Path) -> None:
    with path.open("rb") as old:
        write_model(path, SCHEMA, VALUES)
        assert old.read() == OLD


@pytest.fixture
def syncs_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cairn.model.safetensors_writer._SYNC_BYTES", 4)


@pytest.mark.usefixtures("syncs_often")
def test_what_arrives_while_the_disk_is_slow_is_written_meanwhile(path: Path) -> None:
    is_slow, wrote_on = threading.Event(), threading.Event()

    def fdatasync(_: int) -> None:
        is_slow.set()
        assert wrote_on.wait(30)

    with mock.patch.object(os, "fdatasync", fdatasync), ModelWriter(path, SCHEMA) as new:
        new.write(VALUES[:4])
        assert is_slow.wait(30)
        new.write(VALUES[4:])
        wrote_on.set()
        new.keep()
    assert only(path) == FILE


@pytest.mark.usefixtures("syncs_often")
@pytest.mark.parametrize("more", ["a later write", "keep"])
def test_a_disk_that_is_full_beside_the_writing_is_told_and_leaves_the_old_file(
    path: Path, more: str
) -> None:
    fails = mock.patch.object(os, "fdatasync", side_effect=OSError(errno.ENOSPC, "it is full"))
    with fails, ModelWriter(path, SCHEMA) as new:
        new.write(VALUES[: 4 if more == "a later write" else None])
        until(lambda: new._syncing is not None and new._syncing.done(), "the sync is over")
        with pytest.raises(OSError, match="it is full"):
            _go_on(new, more)
    assert only(path) == OLD


def _go_on(new: ModelWriter, more: str) -> None:
    if more == "keep":
        new.keep()
    else:
        new.write(VALUES[4:])


@pytest.mark.usefixtures("syncs_often")
def test_a_file_that_is_discarded_is_not_closed_under_the_disk(path: Path) -> None:
    order: list[str] = []
    begun, goes_on = threading.Event(), threading.Event()

    def fdatasync(descriptor: int) -> None:
        begun.set()
        assert goes_on.wait(30)
        os.fstat(descriptor)
        order.append("synced")

    with mock.patch.object(os, "fdatasync", fdatasync):
        new = ModelWriter(path, SCHEMA)
        new.write(VALUES[:4])
        assert begun.wait(30)
        discarding = threading.Thread(target=new.discard)
        discarding.start()
        goes_on.set()
        discarding.join(30)
        order.append("discarded")
    assert order == ["synced", "discarded"]
    assert only(path) == OLD
