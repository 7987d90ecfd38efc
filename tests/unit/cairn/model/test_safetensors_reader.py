"""Model files, with the safetensors library as the other writer and reader."""

import hashlib
import json
import os
import pickle
import stat
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import torch
from blake3 import blake3
from safetensors.torch import load_file, save, save_file

from cairn.errors import InvalidMessage, UsageError
from cairn.model.safetensors_reader import read_model
from cairn.model.safetensors_writer import write_model
from cairn.model.schema import Schema, TensorSpec
from cairn.storage.files import write_atomically

STATE = {
    "layer.weight": torch.randn(3, 4, generator=torch.Generator().manual_seed(1)),
    "layer.bias": torch.tensor([1.5, -0.0, 3e-39]),
    "half": torch.tensor([1.0, 65504.0], dtype=torch.float16),
    "brain": torch.tensor([[1.0, -2.5e38]], dtype=torch.bfloat16),
    "double": torch.tensor([1e300], dtype=torch.float64),
    "count": torch.tensor(2**62 + 1),
    "small": torch.tensor([-128, 127], dtype=torch.int8),
    "mask": torch.tensor([True, False, True]),
    "nothing": torch.zeros(0, 7),
}


def file_of(header: object, values: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + values


def entry(begin: Any, end: Any, dtype: Any = "F32", shape: Any = (1,)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.safetensors"


def test_a_file_of_safetensors_is_read_and_written_again_byte_by_byte(path: Path) -> None:
    save_file(STATE, path)
    schema, payload = read_model(path)
    copy = path.with_name("copy.safetensors")
    digest = write_model(copy, schema, payload)
    assert copy.read_bytes() == path.read_bytes()
    assert digest == blake3(path.read_bytes()).digest() == schema.digest(payload)


def test_a_file_that_was_written_is_read_by_safetensors(path: Path) -> None:
    schema = Schema.of([TensorSpec("b", "BF16", (2,)), TensorSpec("w", "F32", (2, 1))])
    weights, brain = torch.tensor([[1.5], [-2.0]]), torch.tensor([3.0, -0.5], dtype=torch.bfloat16)
    write_model(path, schema, weights.numpy().tobytes() + brain.view(torch.int16).numpy().tobytes())
    loaded = load_file(path)
    assert set(loaded) == {"b", "w"}
    assert torch.equal(loaded["w"], weights)
    assert torch.equal(loaded["b"], brain)


def test_a_large_model_is_written_whole_with_its_digest(path: Path) -> None:
    payload = hashlib.shake_256(b"a model").digest(3 * (1 << 20) + 5)
    schema = Schema.of([TensorSpec("a", "U8", (len(payload),))])
    digest = write_model(path, schema, payload)
    assert digest == blake3(path.read_bytes()).digest()
    assert bytes(read_model(path)[1]) == payload


def test_values_in_canonical_order_are_not_copied_and_cannot_be_changed(path: Path) -> None:
    save_file(STATE, path)
    _, payload = read_model(path)
    assert type(payload.obj).__name__ == "mmap"
    assert payload.readonly


def test_values_in_another_order_are_put_in_the_canonical_order(path: Path) -> None:
    header = {
        "b": entry(0, 4),
        "none": entry(4, 4, "I64", (0,)),
        "n": entry(4, 12, "I64", ()),
        "a": entry(12, 16),
    }
    path.write_bytes(file_of(header, b"bbbbnnnnnnnnaaaa"))
    schema, payload = read_model(path)
    assert [tensor.name for tensor in schema.tensors] == ["n", "none", "a", "b"]
    assert bytes(payload) == b"nnnnnnnnaaaabbbb"
    assert payload.readonly


def test_an_empty_tensor_may_stand_anywhere_without_a_copy(path: Path) -> None:
    path.write_bytes(file_of({"a": entry(0, 4), "none": entry(4, 4, "I64", (0,))}, b"aaaa"))
    _, payload = read_model(path)
    assert type(payload.obj).__name__ == "mmap"
    assert bytes(payload) == b"aaaa"


def test_a_model_without_a_single_value_is_read_and_written(path: Path) -> None:
    schema = Schema.of([TensorSpec("none", "F32", (0, 3))])
    write_model(path, schema, b"")
    assert path.read_bytes() == save({"none": torch.zeros(0, 3)})
    assert read_model(path) == (schema, memoryview(b""))


def test_metadata_of_strings_is_left_out(path: Path) -> None:
    save_file({"a": torch.ones(1)}, path, metadata={"format": "pt"})
    schema, payload = read_model(path)
    assert schema == Schema.of([TensorSpec("a", "F32", (1,))])
    assert bytes(payload) == b"\x00\x00\x80\x3f"


def test_a_model_that_was_read_outlives_its_replacement(path: Path) -> None:
    save_file({"a": torch.ones(1)}, path)
    schema, payload = read_model(path)
    write_model(path, schema, bytes(4))
    assert bytes(payload) == b"\x00\x00\x80\x3f"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "empty or cut off"),
        (b"1234567", "empty or cut off"),
        (save({"a": torch.ones(4)})[:40], "header would have"),
        (save({"a": torch.ones(4)})[:-1], "have 16 bytes together, but 15 follow"),
        (save({"a": torch.ones(4)}) + b"\0", "have 16 bytes together, but 17 follow"),
        (((1 << 26) + 1).to_bytes(8, "little"), "at most 67108864"),
        (pickle.dumps({"a": [1.0]}), "PyTorch pickle file, which Cairn never opens"),
        (bytes(64), "does not begin with '{'"),
        (file_of(b" {}"), "does not begin with '{'"),
        (file_of(b"[1]"), "does not begin with '{'"),
        (file_of(b'{"a":'), "no valid JSON"),
        (file_of(b'{"\xff":1}'), "no valid JSON"),
        (file_of(b'{"\\ud800":1}'), "no valid JSON"),
        (file_of(b'{"a":' + b"[" * 100_000), "no valid JSON"),
        (file_of(b'{"a":1,"a":1}'), "a key twice"),
        (file_of(b'{"a":{"dtype":"F32","dtype":"F32"}}'), "a key twice"),
        (file_of({}), "1 to"),
        (file_of({"__metadata__": {"a": 1}}), "__metadata__"),
        (file_of({"__metadata__": ["a"]}), "__metadata__"),
        (file_of({"a": 1}), "tensor a has not exactly the fields"),
        (file_of({"a": {"dtype": "F32", "shape": []}}), "tensor a has not exactly the fields"),
        (file_of({"a": entry(0, 4) | {"x": 1}}), "tensor a has not exactly the fields"),
        (file_of({"a": entry(0, 4, dtype=7)}), "tensor a has a dtype"),
        (
            file_of(b'{"a":{"dtype":"\\ud800","shape":[],"data_offsets":[0,4]}}'),
            "tensor a has a dtype",
        ),
        (file_of({"a": entry(0, 1, dtype="F8_E4M3")}, b"a"), "tensor a has the type F8_E4M3"),
        (file_of({"a": entry(0, 4, shape="1")}, b"aaaa"), "tensor a has a shape"),
        (file_of({"a": entry(0, 4, shape=[-1])}, b"aaaa"), "tensor a has a shape"),
        (file_of({"a": entry(0, 4, shape=[True])}, b"aaaa"), "tensor a has a shape"),
        (file_of({"a": entry(0, 4, shape=[1.0])}, b"aaaa"), "tensor a has a shape"),
        (file_of({"a": entry(0, 4, shape=[1 << 70])}, b"aaaa"), "impossible shape"),
        (file_of({"a": entry(0, None)}, b"aaaa"), "tensor a has data_offsets"),
        (file_of({"a": entry(0, 4) | {"data_offsets": [0, 4, 4]}}), "tensor a has data_offsets"),
        (file_of({"a": entry(4, 8)}, bytes(8)), "tensor a begins at byte 4; expected 0"),
        (file_of({"a": entry(0, 4), "b": entry(0, 4)}, bytes(4)), "begins at byte 0; expected 4"),
        (file_of({"a": entry(0, 4), "b": entry(8, 12)}, bytes(12)), "begins at byte 8; expected 4"),
        (file_of({"a": entry(0, 8)}, bytes(8)), "has 8 bytes; expected 4"),
        (file_of({"a": entry(0, 0)}), "has 0 bytes; expected 4"),
    ],
)
def test_a_file_that_is_not_a_usable_model_is_refused_in_words(
    path: Path, content: bytes, said: str
) -> None:
    path.write_bytes(content)
    with pytest.raises(UsageError, match=said) as caught:
        read_model(path)
    assert str(path) in str(caught.value)


def test_a_header_of_too_many_tensors_is_refused_before_they_are_made(path: Path) -> None:
    """900,000 of them took 17 seconds and more than a gigabyte."""
    entries = (
        f'"t{n}":{{"dtype":"U8","shape":[],"data_offsets":[{n},{n + 1}]}}' for n in range(900_000)
    )
    path.write_bytes(file_of(f"{{{','.join(entries)}}}".encode(), bytes(900_000)))
    tracemalloc.start()
    try:
        with pytest.raises(UsageError, match="more values than 100000 tensors have"):
            read_model(path)
        assert tracemalloc.get_traced_memory()[1] < 4 * path.stat().st_size
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("as_zip", [True, False])
def test_a_file_of_torch_save_is_refused_with_the_cure(path: Path, *, as_zip: bool) -> None:
    torch.save({"a": torch.ones(100)}, path, _use_new_zipfile_serialization=as_zip)
    with pytest.raises(UsageError, match=r"pickle file.*save_file"):
        read_model(path)


@pytest.mark.parametrize("cut", range(0, 200, 7))
def test_a_file_cut_off_anywhere_is_refused(path: Path, cut: int) -> None:
    path.write_bytes(save({"a": torch.ones(40)})[:cut])
    with pytest.raises(UsageError):
        read_model(path)


def test_a_file_that_does_not_exist_is_named(path: Path) -> None:
    with pytest.raises(UsageError, match=r"model\.safetensors does not exist"):
        read_model(path)


def test_a_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is not a file"):
        read_model(tmp_path)


def test_a_file_that_cannot_be_read_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    path.write_bytes(b"")
    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(UsageError, match="cannot be read: Permission denied"):
        read_model(path)


def test_a_payload_of_another_size_is_not_written(path: Path) -> None:
    with pytest.raises(InvalidMessage, match="5 bytes, not 4"):
        write_model(path, Schema.of([TensorSpec("a", "F32", ())]), bytes(5))
    assert not path.exists()


def test_the_parts_are_written_one_after_the_other(path: Path) -> None:
    write_atomically(path, [b"one ", bytearray(b"two "), memoryview(b"three")])
    assert path.read_bytes() == b"one two three"


def test_a_full_disk_leaves_the_old_file_whole_and_nothing_beside_it(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: int) -> None:
        raise OSError(28, "No space left on device")

    path.write_bytes(b"old")
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(path, [b"new"])
    assert path.read_bytes() == b"old"
    assert list(path.parent.iterdir()) == [path]


def test_a_source_that_breaks_off_leaves_the_old_file_whole_and_nothing_beside_it(
    path: Path,
) -> None:
    path.write_bytes(b"old")
    with pytest.raises(ZeroDivisionError):
        write_atomically(path, (bytes(1 // divisor) for divisor in (1, 0)))
    assert path.read_bytes() == b"old"
    assert list(path.parent.iterdir()) == [path]


def test_the_content_is_durable_before_it_takes_the_name(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path.write_bytes(b"old")
    seen: list[tuple[bytes, bool]] = []

    def record(descriptor: int) -> None:
        is_directory = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        seen.append((path.read_bytes(), is_directory))

    monkeypatch.setattr(os, "fsync", record)
    write_atomically(path, [b"new"])
    assert seen == [(b"old", False), (b"new", True)]


def test_a_missing_directory_is_an_error_of_the_file_system(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        write_atomically(tmp_path / "missing" / "file", [b"new"])
