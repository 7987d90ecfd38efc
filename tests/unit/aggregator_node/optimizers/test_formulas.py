"""The optimizers beside `torch.optim`, and beside their formulas in Python's own arithmetic, to the bit."""

import math
import struct
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from aggregator_node.aggregation.mean import Mean
from cairn.model.schema import DTYPES
from cairn.protocol.aggregation import Aggregation
from cairn.v1 import round_pb2 as pb
from tests.unit.aggregator_node.aggregation.whole import add_whole
from tests.unit.aggregator_node.optimizers.steps import (
    Steps,
    aggregation_of,
    schema_of,
)

STEPS, COUNT = 20, 200
SGD, ADAGRAD, ADAM, YOGI = (
    pb.OPTIMIZER_SGD,
    pb.OPTIMIZER_ADAGRAD,
    pb.OPTIMIZER_ADAM,
    pb.OPTIMIZER_YOGI,
)
TORCH: dict[
    str, tuple["pb.Optimizer", dict[str, float], Callable[[Any], torch.optim.Optimizer]]
] = {
    "sgd": (SGD, {"lr": 0.1}, lambda p: torch.optim.SGD(p, lr=0.1)),
    "momentum": (
        SGD,
        {"lr": 0.1, "momentum": 0.9},
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    ),
    "adagrad": (
        ADAGRAD,
        {"lr": 0.1, "epsilon": 1e-3},
        lambda p: torch.optim.Adagrad(p, lr=0.1, eps=1e-3),
    ),
    "adam": (
        ADAM,
        {"lr": 0.01, "beta1": 0.8, "beta2": 0.95, "epsilon": 1e-6},
        lambda p: torch.optim.Adam(p, lr=0.01, betas=(0.8, 0.95), eps=1e-6),
    ),
}


def random_values(dtype: str, seed: int, spread: float = 1.0) -> NDArray[Any]:
    """Values of several sizes, as weights and gradients have."""
    source = np.random.default_rng(seed)
    exponents = source.integers(-6, 2, COUNT)
    return (spread * source.standard_normal(COUNT) * 2.0**exponents).astype(DTYPES[dtype])


@pytest.mark.parametrize("are_gradients", [True, False], ids=["gradients", "weights"])
@pytest.mark.parametrize(("dtype", "rtol"), [("F64", 1e-12), ("F32", 1e-5)])
@pytest.mark.parametrize("name", TORCH)
def test_steps_are_those_of_torch_on_the_gradient_or_the_pseudo_gradient(
    name: str, dtype: str, rtol: float, *, are_gradients: bool
) -> None:
    optimizer, numbers, make = TORCH[name]
    schema, start = schema_of(COUNT, dtype), random_values(dtype, 0)
    steps = Steps(
        schema, aggregation_of(optimizer, are_gradients=are_gradients, **numbers), start.tobytes()
    )
    parameter = torch.nn.Parameter(torch.tensor(start))
    theirs = make([parameter])
    for number in range(1, STEPS + 1):
        result = random_values(dtype, number)
        base = steps.values(dtype)
        steps.go(result.tobytes())
        parameter.grad = torch.tensor(result if are_gradients else base - result)
        theirs.step()
    np.testing.assert_allclose(steps.values(dtype), parameter.detach().numpy(), rtol, rtol)


def sgd(g: float, kept: list[float], _: int, *, lr: float, momentum: float) -> float:
    kept[0] = momentum * kept[0] + g
    return lr * kept[0]


def adagrad(g: float, kept: list[float], _: int, *, lr: float, epsilon: float) -> float:
    kept[0] = kept[0] + g * g
    return lr * (g / (math.sqrt(kept[0]) + epsilon))


def adam(
    g: float, kept: list[float], t: int, *, lr: float, beta1: float, beta2: float, epsilon: float
) -> float:
    """With betas whose powers are exact, so that it does not matter how they are computed."""
    kept[0] = beta1 * kept[0] + (1 - beta1) * g
    kept[1] = beta2 * kept[1] + (1 - beta2) * (g * g)
    size = math.sqrt(kept[1]) / math.sqrt(1 - beta2**t) + epsilon
    return lr / (1 - beta1**t) * (kept[0] / size)


def yogi(
    g: float, kept: list[float], _: int, *, lr: float, beta1: float, beta2: float, epsilon: float
) -> float:
    """Algorithm 2 of Reddi et al. 2021."""
    square = g * g
    sign = (kept[1] > square) - (kept[1] < square)
    kept[0] = beta1 * kept[0] + (1 - beta1) * g
    kept[1] = kept[1] - (1 - beta2) * (square * sign)
    return lr * (kept[0] / (math.sqrt(kept[1]) + epsilon))


BETAS = {"beta1": 0.5, "beta2": 0.75}
FORMULAS: dict[str, tuple["pb.Optimizer", Callable[..., float], dict[str, float], list[float]]] = {
    "sgd": (SGD, sgd, {"lr": 0.3, "momentum": 0.9}, [0.0]),
    "adagrad": (ADAGRAD, adagrad, {"lr": 0.3, "epsilon": 1e-3}, [0.0]),
    "adam": (ADAM, adam, {"lr": 0.03, **BETAS, "epsilon": 1e-3}, [0.0, 0.0]),
    "yogi": (YOGI, yogi, {"lr": 0.03, **BETAS, "epsilon": 1e-3}, [0.0, 1e-3 * 1e-3]),
}


def rounded(value: float, dtype: str) -> float:
    """Rounded once, to nearest, ties to even; of the size of these tests' values."""
    if dtype == "BF16":
        fraction, exponent = math.frexp(value)
        return math.ldexp(round(fraction * 2**8), exponent - 8)
    kind = {"F16": "<e", "F32": "<f", "F64": "<d"}[dtype]
    return float(struct.unpack(kind, struct.pack(kind, value))[0])


@pytest.mark.parametrize("are_gradients", [True, False], ids=["gradients", "weights"])
@pytest.mark.parametrize("dtype", ["F64", "F32", "BF16", "F16"])
@pytest.mark.parametrize("name", FORMULAS)
def test_every_bit_is_that_of_the_formula_in_binary64_rounded_once(
    name: str, dtype: str, *, are_gradients: bool
) -> None:
    optimizer, change, numbers, first = FORMULAS[name]
    schema, start = schema_of(COUNT, dtype), random_values(dtype, 0)
    steps = Steps(
        schema, aggregation_of(optimizer, are_gradients=are_gradients, **numbers), start.tobytes()
    )
    weights = [float(x) for x in start]
    kept = [list(first) for _ in weights]
    for number in range(1, STEPS + 1):
        result = random_values(dtype, number)
        steps.go(result.tobytes())
        for i, (weight, value) in enumerate(zip(weights, result, strict=True)):
            gradient = float(value) if are_gradients else weight - float(value)
            weights[i] = rounded(weight - change(gradient, kept[i], number, **numbers), dtype)
            kept[i] = [rounded(x, "F64" if dtype == "F64" else "F32") for x in kept[i]]
    assert steps.values(dtype).tolist() == weights
    assert steps.state is not None
    numbers_kept = np.frombuffer(steps.state[8:], DTYPES["F64" if dtype == "F64" else "F32"])
    assert numbers_kept.reshape(COUNT, -1).tolist() == kept
    assert int.from_bytes(steps.state[:8], "little") == STEPS


@pytest.mark.parametrize("dtype", ["F64", "F32"])
def test_without_momentum_and_with_a_rate_of_one_the_release_is_the_mean_to_rounding(
    dtype: str,
) -> None:
    aggregation = aggregation_of(SGD, are_gradients=False, lr=1)
    base, mean = random_values(dtype, 1), random_values(dtype, 2)
    steps = Steps(schema_of(COUNT, dtype), aggregation, base.tobytes())
    steps.go(mean.tobytes())
    unit = float(np.finfo(DTYPES[dtype]).eps)
    limit = unit * np.maximum(np.abs(base), np.abs(mean)).astype(np.float64)
    assert (np.abs(steps.values(dtype).astype(np.float64) - mean) <= limit).all()
    assert steps.step.state_schema is None


def owners_of_a_regression() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """The examples of three owners, who have different numbers of them."""
    source = torch.Generator().manual_seed(7)
    for examples in (5, 40, 111):
        inputs = torch.randn(examples, 6, generator=source, dtype=torch.float64)
        yield inputs, inputs.sum(1) + torch.randn(examples, generator=source, dtype=torch.float64)


def gradient_of(weights: torch.Tensor, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    weights = weights.clone().requires_grad_()
    loss = torch.nn.functional.mse_loss(inputs @ weights, targets)
    (gradient,) = torch.autograd.grad(loss, weights)
    return gradient


def test_fed_sgd_with_example_weights_is_the_central_full_batch_step() -> None:
    owners = list(owners_of_a_regression())
    together = torch.cat([x for x, _ in owners]), torch.cat([y for _, y in owners])
    schema, central = schema_of(6, "F64"), torch.zeros(6, dtype=torch.float64)
    steps = Steps(schema, aggregation_of(SGD, lr=0.05), central.numpy().tobytes())
    for _ in range(STEPS):
        base = torch.tensor(steps.values("F64"))
        mean = Mean(schema, Aggregation(), 2)
        for inputs, targets in owners:
            gradient = gradient_of(base, inputs, targets)
            add_whole(mean, schema, gradient.numpy().tobytes(), len(inputs))
        steps.go(b"".join(bytes(piece) for piece in mean.result_blocks()))
        central = central - 0.05 * gradient_of(central, *together)
    np.testing.assert_allclose(steps.values("F64"), central.numpy(), 1e-12, 1e-12)
