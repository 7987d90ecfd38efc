"""How far an update may be from its base, against plain PyTorch and NumPy."""

import math

import pytest
import torch
from torch import Tensor

from cairn.model.validation import BLOCK
from cairn.tasks.state_dict import payload_of, read_state
from owner_node.updates.clipping import clip

State = dict[str, Tensor]
TYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]


def clipped(base: State, update: State, limit: float) -> tuple[bool, State]:
    schema, before = payload_of(base)
    _, payload = payload_of(update)
    unchanged = bytes(before)
    was = clip(schema, before, memoryview(payload), limit)
    assert before == unchanged
    return was, read_state(schema, payload)


def distance(base: State, update: State) -> float:
    """By PyTorch, in binary64."""
    parts = [
        (update[n].double() - base[n].double()).flatten()
        for n in base
        if base[n].is_floating_point()
    ]
    return float(torch.linalg.vector_norm(torch.cat(parts)))


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_without_a_base_it_is_a_gradient_which_is_shortened_to_the_limit(
    dtype: torch.dtype,
) -> None:
    gradient, _ = states(dtype)
    del gradient["n"]
    zeros = {name: torch.zeros_like(tensor) for name, tensor in gradient.items()}
    limit = distance(zeros, gradient) / 3
    schema, payload = payload_of(gradient)
    assert clip(schema, None, memoryview(payload), limit)
    for name, found in read_state(schema, payload).items():
        expected = gradient[name].double() * (limit / distance(zeros, gradient))
        torch.testing.assert_close(
            found, expected.to(dtype), rtol=torch.finfo(dtype).eps, atol=4e-16
        )
    as_it_was = bytes(payload)
    assert not clip(schema, None, memoryview(payload), limit * 1.01)
    assert payload == as_it_was


def states(dtype: torch.dtype) -> tuple[State, State]:
    torch.manual_seed(3)
    base = {"a": torch.randn(300, 7).to(dtype), "b": torch.randn(5).to(dtype), "n": torch.tensor(3)}
    update = {
        k: (v + torch.randn(v.shape).to(dtype)) if k != "n" else v + 4 for k, v in base.items()
    }
    return base, update


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_a_longer_update_is_scaled_down_as_plain_pytorch_does_it(dtype: torch.dtype) -> None:
    base, update = states(dtype)
    limit = distance(base, update) / 3
    was, found = clipped(base, update, limit)
    assert was
    for name in ("a", "b"):
        delta = update[name].double() - base[name].double()
        expected = base[name].double() + delta * (limit / distance(base, update))
        torch.testing.assert_close(
            found[name], expected.to(dtype), rtol=torch.finfo(dtype).eps, atol=4e-16
        )
    assert found["n"] == 7
    if dtype in {torch.float32, torch.float64}:
        assert distance(base, found) == pytest.approx(limit, rel=1e-6)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_an_update_within_the_limit_keeps_every_bit(dtype: torch.dtype) -> None:
    base, update = states(dtype)
    was, found = clipped(base, update, distance(base, update) * 1.0001)
    assert not was
    assert all(torch.equal(found[name], update[name]) for name in update)


def test_one_norm_is_over_all_types_together_and_over_every_block() -> None:
    base = {"a": torch.zeros(BLOCK + 3), "b": torch.zeros(2, dtype=torch.float64)}
    update = {k: v.clone() for k, v in base.items()}
    update["a"][-1] = 3.0
    update["b"][0] = 4.0
    assert clipped(base, update, 5.0)[0] is False
    was, found = clipped(base, update, 2.5)
    assert was
    assert (float(found["a"][-1]), float(found["b"][0])) == (1.5, 2.0)


def test_values_whose_binary32_norm_overflows_are_scaled_and_not_lost() -> None:
    base = {"w": torch.zeros(4)}
    update = {"w": torch.full((4,), 1e30)}
    assert math.isinf(torch.linalg.vector_norm(update["w"]).item())
    was, found = clipped(base, update, 1.0)
    assert was
    assert found["w"].tolist() == [0.5] * 4


@pytest.mark.parametrize("far", [1.7e308, 1e200])
def test_values_whose_difference_or_square_overflows_binary64_are_scaled(far: float) -> None:
    base = {"w": torch.tensor([-far, far], dtype=torch.float64)}
    was, found = clipped(base, {"w": -base["w"]}, 1.0)
    assert was
    assert torch.equal(found["w"], base["w"])  # a step of 0.7 is below one unit of these numbers


def test_values_whose_squares_vanish_are_measured_too() -> None:
    base = {"w": torch.zeros(1, dtype=torch.float64)}
    was, found = clipped(base, {"w": torch.tensor([1e-200], dtype=torch.float64)}, 1e-201)
    assert was
    assert float(found["w"]) == pytest.approx(1e-201)


@pytest.mark.parametrize("value", [0.0, 1.0, -65504.0])
def test_an_update_that_is_its_base_stays_as_it_is(value: float) -> None:
    base = {"w": torch.full((3,), value, dtype=torch.float16)}
    assert clipped(base, base, 1e-30)[0] is False


def test_a_model_without_floating_point_tensors_stays_as_it_is() -> None:
    base: State = {"n": torch.tensor([1, 2]), "m": torch.tensor([True])}
    was, found = clipped(base, {"n": torch.tensor([90, 9]), "m": torch.tensor([False])}, 0.1)
    assert not was
    assert found["n"].tolist() == [90, 9]


def test_an_empty_tensor_is_no_matter() -> None:
    base = {"e": torch.zeros(0, 3), "w": torch.zeros(1)}
    was, found = clipped(base, {"e": torch.zeros(0, 3), "w": torch.tensor([8.0])}, 2.0)
    assert was
    assert float(found["w"]) == 2.0
