"""Reads a model from a disk: a safetensors file, strictly.

The only place that opens model files to read. It never unpickles: a PyTorch pickle file is refused by
name. What is read may have its tensors in any order that the format allows.
"""

import json
import mmap
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from cairn.errors import InvalidMessage, UsageError
from cairn.model.schema import CHUNK_BYTES, MAX_TENSORS, Schema, TensorSpec
from cairn.runtime.foreign_files import json_values
from cairn.runtime.quoting import quoted

MAX_HEADER_BYTES = 1 << 26
_LENGTH_BYTES = 8
_BEGIN_AND_END = 2
_VALUES_OF_ONE_TENSOR = 40  # about 15, and as many more as it has dimensions
_FIELDS = {"dtype", "shape", "data_offsets"}
# torch.save writes a zip archive; before, it wrote a bare pickle (of protocol 2 to 5).
_PICKLE_BEGINNINGS = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


def read_model(path: Path) -> tuple[Schema, memoryview]:
    """Return the schema of a safetensors file, and its values in canonical order, read-only.

    The values are the file itself, mapped, where its order is canonical, and a copy otherwise. A mapped
    file must not be overwritten in place; `model_writing` replaces it, which leaves the mapping whole.
    Raises UsageError, which names the file and what is wrong, for whatever is not a valid file.
    """
    try:
        content = _map(path)
        length = _header_length(content)
        entries = _parse_header(bytes(content[_LENGTH_BYTES:][:length]))
        values = content[_LENGTH_BYTES + length :]
        schema = Schema.of(entry.spec for entry in entries)
        _check_coverage(entries, len(values))
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from error
    except InvalidMessage as error:
        why = quoted(str(error))  # it may hold the name of a tensor
        raise UsageError(f"{path} is not a safetensors file that Cairn can use: {why}") from error
    return schema, _in_order(schema, entries, values)


def map_values(path: Path, schema: Schema) -> memoryview:
    """The values of a canonical file of this schema, which `model_writing` has written: mapped, read-only."""
    return _map(path)[len(schema.header()) :]


class ModelReader:
    """The values of a canonical file, read piece by piece: the file never counts as this process's memory."""

    def __init__(self, path: Path) -> None:
        """Open the file. Raises OSError as the file system does."""
        self._file = os.open(path, os.O_RDONLY)
        header = int.from_bytes(os.pread(self._file, _LENGTH_BYTES, 0), "little")
        self._begin = _LENGTH_BYTES + header
        self.total = os.fstat(self._file).st_size - self._begin

    def pieces(self, offset: int) -> Iterator[memoryview]:
        """The values from this byte on, in pieces of `CHUNK_BYTES`."""
        while piece := os.pread(self._file, CHUNK_BYTES, self._begin + offset):
            offset += len(piece)
            yield memoryview(piece)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._file)


@dataclass(frozen=True, slots=True)
class _Entry:
    """One tensor of a file and where its values lie, counted from the end of the header."""

    spec: TensorSpec
    begin: int
    end: int


def _map(path: Path) -> memoryview:
    if not path.exists():
        raise UsageError(f"{path} does not exist; expected a safetensors file")
    if not path.is_file():
        raise UsageError(f"{path} is not a file; expected a safetensors file")
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size < _LENGTH_BYTES:
            raise InvalidMessage(f"it is empty or cut off: it has {size} bytes")
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def _header_length(content: memoryview) -> int:
    length = int.from_bytes(content[:_LENGTH_BYTES], "little")
    if length <= min(MAX_HEADER_BYTES, len(content) - _LENGTH_BYTES):
        return length
    if bytes(content[:4]).startswith(_PICKLE_BEGINNINGS):
        raise InvalidMessage(
            "it is a PyTorch pickle file, which Cairn never opens;"
            " save the state_dict with safetensors.torch.save_file"
        )
    raise InvalidMessage(
        f"its header would have {length} bytes; expected at most {MAX_HEADER_BYTES}"
        f" and no more than the file, which has {len(content)}"
    )


def _parse_header(text: bytes) -> list[_Entry]:
    if not text.startswith(b"{"):
        raise InvalidMessage("its header does not begin with '{'; expected a JSON object")
    if json_values(text) > MAX_TENSORS * _VALUES_OF_ONE_TENSOR:  # before each becomes an object
        raise InvalidMessage(f"its header has more values than {MAX_TENSORS} tensors have")
    try:
        header: dict[str, Any] = json.loads(text.decode(), object_pairs_hook=_without_duplicates)
    except (ValueError, RecursionError) as error:
        raise InvalidMessage(f"its header is no valid JSON object: {error}") from error
    metadata = header.pop("__metadata__", {})
    if len(header) > MAX_TENSORS:
        raise InvalidMessage(f"a model has 1 to {MAX_TENSORS} tensors, this one {len(header)}")
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise InvalidMessage("its __metadata__ is not an object of strings")
    return [_parse_entry(name, fields) for name, fields in header.items()]


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    unique = dict(pairs)
    if len(unique) != len(pairs):
        raise InvalidMessage("its header has a key twice in one object")
    for name in unique:
        name.encode()  # JSON can spell half a surrogate pair, which is no text
    return unique


def _parse_entry(name: str, fields: Any) -> _Entry:
    if not isinstance(fields, dict) or fields.keys() != _FIELDS:
        raise InvalidMessage(
            f"tensor {name} has not exactly the fields {', '.join(sorted(_FIELDS))}"
        )
    dtype, shape, offsets = fields["dtype"], fields["shape"], fields["data_offsets"]
    if not isinstance(dtype, str) or not dtype.isascii():
        raise InvalidMessage(f"tensor {name} has a dtype that is not the name of a type")
    if not _are_sizes(shape):
        raise InvalidMessage(f"tensor {name} has a shape that is not a list of sizes")
    if not _are_sizes(offsets) or len(offsets) != _BEGIN_AND_END:
        raise InvalidMessage(f"tensor {name} has data_offsets that are not a beginning and an end")
    return _Entry(TensorSpec(name, dtype, tuple(shape)), *offsets)


def _are_sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(size) is int and size >= 0 for size in value)


def _check_coverage(entries: list[_Entry], nbytes: int) -> None:
    """Every byte of the values belongs to exactly one tensor, and each tensor has its own size."""
    position = 0
    for entry in sorted(entries, key=lambda entry: (entry.begin, entry.end)):
        name, expected = entry.spec.name, entry.spec.nbytes
        if entry.begin != position:
            raise InvalidMessage(
                f"tensor {name} begins at byte {entry.begin}; expected {position}, without gap or overlap"
            )
        if entry.end - entry.begin != expected:
            raise InvalidMessage(
                f"tensor {entry.spec} has {entry.end - entry.begin} bytes; expected {expected}"
            )
        position = entry.end
    if position != nbytes:
        raise InvalidMessage(
            f"its tensors have {position} bytes together, but {nbytes} follow the header"
        )


def _in_order(schema: Schema, entries: list[_Entry], values: memoryview) -> memoryview:
    places = {entry.spec.name: slice(entry.begin, entry.end) for entry in entries}
    ordered = [places[tensor.name] for tensor in schema.tensors]
    # Where an empty tensor stands is of no account.
    starts = zip(ordered, schema.offsets, strict=False)
    if all(place.start in {offset, place.stop} for place, offset in starts):
        return values
    return memoryview(b"".join(values[place] for place in ordered))
