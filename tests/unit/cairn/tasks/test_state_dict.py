"""Between a PyTorch state_dict and canonical bytes: exact for every type, shape and layout."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from cairn.errors import UsageError
from cairn.tasks.state_dict import (
    facts_of,
    payload_of,
    read_state,
    schema_of,
    write_state,
)

TYPES = [
    torch.bool,
    torch.uint8,
    torch.int8,
    torch.int16,
    torch.int32,
    torch.int64,
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
]


def returned(state: dict[str, Tensor]) -> dict[str, Tensor]:
    schema, payload = payload_of(state)
    return read_state(schema, payload)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (1,), (3, 5)])
def test_every_type_and_shape_comes_back_bit_by_bit(
    dtype: torch.dtype, shape: tuple[int, ...]
) -> None:
    tensor = (torch.randn(shape, generator=torch.Generator().manual_seed(1)) * 40).abs().to(dtype)
    back = returned({"t": tensor})["t"]
    assert back.dtype == dtype
    assert back.shape == tensor.shape
    assert torch.equal(back, tensor)


def test_the_bytes_are_those_of_the_file_that_safetensors_writes(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(2)
    state = {
        str(dtype): (torch.randn(3, 7, generator=generator).abs() * 9).to(dtype) for dtype in TYPES
    }
    state |= {"scalar": torch.tensor(3), "empty": torch.empty(0, 4)}
    save_file(state, tmp_path / "model.safetensors")
    schema, payload = payload_of(state)
    assert (tmp_path / "model.safetensors").read_bytes() == schema.header() + payload


def test_strides_stay_at_home_and_values_arrive() -> None:
    image = torch.arange(24.0).reshape(1, 2, 3, 4).to(memory_format=torch.channels_last)
    state = {
        "transposed": torch.arange(6.0).reshape(2, 3).T,
        "image": image,
        "every": image[..., 1],
    }
    back = returned(state)
    assert all(torch.equal(back[name], state[name]) for name in state)


def test_tied_weights_travel_under_each_name_and_stay_tied() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    state = returned(model.state_dict())
    assert torch.equal(state["0.weight"], state["1.weight"])
    model.load_state_dict(state)
    assert model[1].weight is model[0].weight


def test_parameters_that_require_gradients_are_written_without_them() -> None:
    model = nn.Linear(2, 1)
    schema, payload = payload_of(dict(model.named_parameters()))
    assert torch.equal(read_state(schema, payload)["weight"], model.weight.detach())


def test_the_tensors_of_a_payload_are_views_of_it() -> None:
    schema, payload = payload_of({"t": torch.zeros(2)})
    tensor = read_state(schema, payload)["t"]
    write_state({"t": torch.ones(2)}, schema, payload)
    assert tensor.tolist() == [1.0, 1.0]


@pytest.mark.parametrize(
    ("entry", "word"),
    [
        (torch.zeros(1, dtype=torch.complex64), "complex64"),
        (torch.zeros(1, dtype=torch.float8_e4m3fn), "float8_e4m3fn"),
        (torch.eye(2).to_sparse(), "sparse_coo"),
        (torch.zeros(1, device="meta"), "meta device"),
        (nn.LazyLinear(2).weight, "no shape yet"),
        ({"extra": 1}, "only tensors"),
    ],
)
def test_what_cannot_be_averaged_is_refused_by_name(entry: Any, word: str) -> None:
    with pytest.raises(UsageError, match=word) as caught:
        schema_of({"fine": torch.zeros(1), "layer.odd": entry})
    assert "layer.odd" in str(caught.value)


def test_a_model_without_tensors_is_refused() -> None:
    with pytest.raises(UsageError, match="tensors"):
        schema_of(nn.ReLU().state_dict())


@pytest.mark.parametrize(
    ("entry", "facts"),
    [
        (torch.zeros(2, 3), ("F32", (2, 3), 24)),
        (torch.tensor(1), ("I64", (), 8)),
        (torch.zeros(2, dtype=torch.complex64), ("complex64", (2,), 16)),
        (torch.zeros(3, dtype=torch.float8_e4m3fn), ("float8_e4m3fn", (3,), 3)),
        (torch.eye(2).to_sparse(), ("F32", (), 0)),
        (nn.LazyLinear(2).weight, ("UninitializedParameter", (), 0)),
        ({"extra": 1}, ("dict", (), 0)),
    ],
)
def test_an_entry_of_any_kind_has_a_type_a_shape_and_bytes(
    entry: Any, facts: tuple[str, tuple[int, ...], int]
) -> None:
    assert facts_of(entry) == facts


def test_only_what_the_schema_names_is_written() -> None:
    schema, payload = payload_of({"t": torch.zeros(2)})
    write_state({"t": torch.ones(2), "private": torch.full((2,), 3.0)}, schema, payload)
    assert payload == torch.ones(2).numpy().tobytes()
