"""The canonical form of a model, held against the safetensors library itself."""

from pathlib import Path

import pytest
import torch
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save, save_file

from cairn.errors import InvalidMessage
from cairn.model import schema as module
from cairn.model.schema import DTYPES, MAX_NAME_BYTES, Schema, TensorSpec

TORCH_DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I32": torch.int32,
    "F32": torch.float32,
    "F64": torch.float64,
    "I64": torch.int64,
}
names = st.text(min_size=1, max_size=40).filter(lambda name: name != "__metadata__")
shapes = st.lists(st.integers(0, 3), max_size=4).map(tuple)
specs = st.builds(TensorSpec, names, st.sampled_from(sorted(DTYPES)), shapes)
models = st.lists(specs, min_size=1, max_size=12, unique_by=lambda spec: spec.name)


def ones(spec: TensorSpec) -> torch.Tensor:
    return torch.ones(spec.shape, dtype=TORCH_DTYPES[spec.dtype])


@settings(max_examples=300, deadline=None)
@given(models)
def test_the_header_is_the_one_that_safetensors_writes(listed: list[TensorSpec]) -> None:
    file = save({spec.name: ones(spec) for spec in listed})
    header = Schema.of(listed).header()
    assert file[: len(header)] == header


@settings(max_examples=100, deadline=None)
@given(models)
def test_the_payload_has_the_size_that_safetensors_gives_it(listed: list[TensorSpec]) -> None:
    file = save({spec.name: ones(spec) for spec in listed})
    schema = Schema.of(listed)
    assert schema.total_bytes == len(file) - len(schema.header())


def test_every_type_is_known_to_pytorch_under_its_size() -> None:
    assert {name: dtype.itemsize for name, dtype in DTYPES.items()} == {
        name: dtype.itemsize for name, dtype in TORCH_DTYPES.items()
    }


@pytest.mark.parametrize(
    "name",
    ['quote"', "back\\slash", "new\nline", "\x00\x1f\x7f", "\u2028", "naïve.weight", "🪨", " "],
)
def test_an_odd_name_is_spelt_as_safetensors_spells_it(name: str) -> None:
    file = save({name: torch.zeros(2), "plain": torch.zeros(3)})
    schema = Schema.of([TensorSpec("plain", "F32", (3,)), TensorSpec(name, "F32", (2,))])
    assert file[: len(schema.header())] == schema.header()


def test_names_are_ordered_as_safetensors_orders_them() -> None:
    listed = ["b", "a.10", "a.2", "é", "Z", "🪨", "\uffff", "a"]
    file = save({name: torch.zeros(1) for name in listed})
    header = Schema.of(TensorSpec(name, "F32", (1,)) for name in listed).header()
    assert file[: len(header)] == header


def test_the_digest_is_the_blake3_of_the_file(tmp_path: Path) -> None:
    state = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4)).state_dict()
    save_file(state, tmp_path / "model.safetensors")
    content = (tmp_path / "model.safetensors").read_bytes()
    types = {dtype: name for name, dtype in TORCH_DTYPES.items()}
    schema = Schema.of(
        TensorSpec(name, types[tensor.dtype], tuple(tensor.shape)) for name, tensor in state.items()
    )
    payload = content[len(schema.header()) :]
    assert schema.digest(payload) == blake3(content).digest()


def test_a_hasher_fed_in_pieces_gives_the_digest() -> None:
    schema = Schema.of([TensorSpec("a", "U8", (5,))])
    hasher = schema.hasher()
    hasher.update(b"ab")
    hasher.update(b"cde")
    assert hasher.digest() == schema.digest(b"abcde")


def test_the_order_in_which_tensors_are_listed_is_irrelevant() -> None:
    listed = [
        TensorSpec("a", "F32", (1,)),
        TensorSpec("b", "I64", ()),
        TensorSpec("c", "F32", (0,)),
    ]
    assert Schema.of(listed) == Schema.of(reversed(listed))


def test_the_offsets_say_where_each_tensor_begins_and_the_payload_ends() -> None:
    schema = Schema.of([TensorSpec("a", "U8", (5,)), TensorSpec("b", "I64", (2,))])
    assert schema.offsets == (0, 16, 21)


@pytest.mark.parametrize(
    ("listed", "said"),
    [
        ([], "1 to"),
        ([TensorSpec("a", "F32", (1,)), TensorSpec("a", "F16", (1,))], "same name"),
        ([TensorSpec("a", "F8_E4M3", (1,))], "F8_E4M3"),
        ([TensorSpec("", "F32", (1,))], "name"),
        ([TensorSpec("é" * (MAX_NAME_BYTES // 2 + 1), "F32", (1,))], "name"),
        ([TensorSpec("__metadata__", "F32", (1,))], "reserves"),
        ([TensorSpec("a", "F32", (-1,))], "impossible shape"),
        ([TensorSpec("a", "F32", (0, 1 << 63))], "impossible shape"),
        ([TensorSpec("a", "F32", (1,) * 65)], "impossible shape"),
        ([TensorSpec("a", "F64", (1 << 44,))], "larger than"),
    ],
)
def test_tensors_that_make_no_model_are_refused(listed: list[TensorSpec], said: str) -> None:
    with pytest.raises(InvalidMessage, match=said):
        Schema.of(listed)


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ([TensorSpec("a", "F32", (2,))], ""),
        ([TensorSpec("a", "F32", (3,))], "a F32[3] should be a F32[2]"),
        ([TensorSpec("b", "F32", (2,))], "a F32[2] is missing"),
        (
            [TensorSpec("a", "F32", (2,)), TensorSpec("b", "F32", ())],
            "b F32[] is not part of the model",
        ),
    ],
)
def test_a_difference_is_told_in_words(other: list[TensorSpec], said: str) -> None:
    assert Schema.of([TensorSpec("a", "F32", (2,))]).difference(Schema.of(other)) == said


def test_a_model_may_have_as_many_tensors_as_the_limit_says_and_no_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "MAX_TENSORS", 3)
    listed = [TensorSpec(f"t{number}", "F32", (1,)) for number in range(4)]
    assert Schema.of(listed[:3]).tensors == tuple(listed[:3])
    with pytest.raises(InvalidMessage, match="1 to 3 tensors, this one 4"):
        Schema.of(listed)
