"""One round of a task: what goes in, what comes out, and every way in which it can be wrong."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from cairn.task import Data, Round, Site, Task
from cairn.task_loading import TaskFailed
from cairn.task_running import Outcome, TaskRunner, first_model
from cairn.tensors import Schema
from cairn.torch_state import payload_of, read_state
from cairn.v1 import round_pb2 as pb

SITE = Site("bob", Path("rows"))
THIS = Round("job", 3, {"lr": 0.5})
Train = Callable[[nn.Module, Any, Round], Mapping[str, float] | None]


def a_task(train: Train, model: Callable[[], nn.Module] = lambda: nn.Linear(2, 1)) -> Task:
    return Task(model=model, data=lambda _: Data(train=None, examples=4), train=train)


def trained(task: Task, schema: Schema | None = None) -> tuple[Outcome, dict[str, torch.Tensor]]:
    built, base = first_model(task, 1)
    schema = schema or built
    update = bytearray(schema.total_bytes)
    outcome = TaskRunner(task, SITE).train(THIS, schema, base, update)
    return outcome, read_state(schema, update)


def failure(task: Task, schema: Schema | None = None) -> tuple[str, str]:
    with pytest.raises(TaskFailed) as caught:
        trained(task, schema)
    return pb.Reason.Name(caught.value.reason), str(caught.value)


def nothing(_model: nn.Module, _data: Any, _round: Round) -> None:
    return None


def test_the_task_is_handed_the_base_in_training_mode_and_its_changes_are_the_update() -> None:
    def train(model: nn.Module, data: Any, this: Round) -> dict[str, float]:
        assert model.training
        assert (data.examples, this.job, this.number, dict(this.settings)) == (
            4,
            "job",
            3,
            {"lr": 0.5},
        )
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(2)
        return {"loss": 0.25}

    torch.manual_seed(1)
    expected = nn.Linear(2, 1)
    outcome, state = trained(a_task(train))
    assert outcome == Outcome(4, {"loss": 0.25})
    assert torch.equal(state["weight"], 2 * expected.weight.detach())
    assert torch.equal(state["bias"], 2 * expected.bias.detach())


def test_the_data_is_read_once_and_the_model_is_new_in_every_round() -> None:
    calls: list[str] = []

    def model() -> nn.Module:
        calls.append("model")
        return nn.Linear(1, 1)

    def data(site: Site) -> Data:
        calls.append(site.name)
        return Data(train=None, examples=1)

    task = Task(model=model, data=data, train=nothing)
    schema, base = first_model(task, 1)
    runner = TaskRunner(task, SITE)
    for _ in range(3):
        runner.train(THIS, schema, base, bytearray(schema.total_bytes))
    assert calls.count("bob") == 1
    assert calls.count("model") == 4


def test_the_same_seed_gives_the_same_first_model() -> None:
    task = a_task(nothing)
    assert first_model(task, 5) == first_model(task, 5) != first_model(task, 6)


def test_a_half_precision_model_with_batchnorm_scalars_and_ties_survives_a_round() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(2, 4, 3).to(
                torch.bfloat16,
                memory_format=torch.channels_last,  # type: ignore[call-overload]  # its stubs know no pair
            )
            self.norm = nn.BatchNorm2d(4)
            self.small = nn.Linear(4, 4).half()
            self.tied = nn.Linear(4, 4).half()
            self.tied.weight = self.small.weight
            self.scale = nn.Parameter(torch.tensor(1.5, dtype=torch.float64))
            self.register_buffer("mask", torch.tensor([True, False]))
            self.register_buffer("nothing", torch.empty(0, 3))

    def train(model: Any, _data: Any, _round: Round) -> None:
        model.norm(torch.ones(2, 4, 2, 2))
        with torch.no_grad():
            model.small.weight.add_(1)
            model.conv.weight.mul_(2)

    torch.manual_seed(1)
    plain = Model()
    train(plain.train(), None, THIS)
    _, state = trained(a_task(train, Model))
    expected = plain.state_dict()
    assert {name: tensor.dtype for name, tensor in state.items()} == {
        name: tensor.dtype for name, tensor in expected.items()
    }
    assert all(torch.equal(state[name], expected[name]) for name in expected)
    assert state["norm.num_batches_tracked"] == 1


def test_evaluation_is_in_evaluation_mode_without_gradients_and_counts_the_test_examples() -> None:
    def evaluate(model: nn.Module, _data: Any, _round: Round) -> dict[str, float]:
        assert not model.training
        assert not torch.is_grad_enabled()
        return {"accuracy": 1.0}

    task = Task(
        model=lambda: nn.Linear(2, 1),
        data=lambda _: Data(train=None, examples=4, test_examples=2),
        train=nothing,
        evaluate=evaluate,
    )
    schema, base = first_model(task, 1)
    assert TaskRunner(task, SITE).evaluate(THIS, schema, base) == Outcome(2, {"accuracy": 1.0})


def test_a_job_that_evaluates_needs_a_task_that_does() -> None:
    task = a_task(nothing)
    with pytest.raises(TaskFailed, match="no evaluate function"):
        TaskRunner(task, SITE).evaluate(THIS, *first_model(task, 1))


def test_scalars_of_torch_and_numpy_are_metrics() -> None:
    metrics: dict[str, Any] = {
        "whole": 2,
        "zero_d": torch.tensor(0.5, requires_grad=True),
        "numpy": np.float32(0.25),
    }
    outcome, _ = trained(a_task(lambda *_: metrics))
    assert outcome.metrics == {"whole": 2.0, "zero_d": 0.5, "numpy": 0.25}


def test_a_metric_that_is_not_finite_is_left_out_and_said(
    capsys: pytest.CaptureFixture[str],
) -> None:
    metrics = {"good": 1.0, "bad": float("nan"), "huge": 10**400}
    outcome, _ = trained(a_task(lambda *_: metrics))
    assert outcome.metrics == {"good": 1.0}
    assert "metric bad is nan" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("returned", "words"),
    [
        (0.5, "returned float"),
        ({"loss": "low"}, "metric loss is of type str"),
        ({"loss": torch.zeros(2)}, "metric loss is of type Tensor"),
        ({"": 1.0}, "1 to 64 bytes"),
        ({"é" * 33: 1.0}, "1 to 64 bytes"),
        ({1: 1.0}, "1 to 64 bytes"),
        ({str(n): 1.0 for n in range(65)}, "more than 64"),
    ],
)
def test_what_is_no_metric_fails_the_task(returned: Any, words: str) -> None:
    reason, text = failure(a_task(lambda *_: returned))
    assert reason == "REASON_TASK_FAILED"
    assert words in text


def test_code_that_raises_fails_the_task_by_the_type_alone() -> None:
    def train(_model: nn.Module, _data: Any, _round: Round) -> None:
        raise ValueError("patient 7")

    assert failure(a_task(train)) == (
        "REASON_TASK_FAILED",
        "the task's train raised ValueError",
    )


def replace_layer(model: Any, _data: Any, _round: Round) -> None:
    model[0] = nn.Linear(2, 3)


def halve(model: Any, _data: Any, _round: Round) -> None:
    model.half()


def add_layer(model: Any, _data: Any, _round: Round) -> None:
    model.append(nn.Linear(1, 1))


def add_complex(model: Any, _data: Any, _round: Round) -> None:
    model.register_buffer("phase", torch.zeros(1, dtype=torch.complex64))


@pytest.mark.parametrize(
    ("train", "words"),
    [
        (replace_layer, "0.bias F32[3] should be 0.bias F32[1]"),
        (halve, "0.bias F16[1] should be 0.bias F32[1]"),
        (add_layer, "1.bias F32[1] is not part of the model"),
        (add_complex, "phase"),
    ],
)
def test_training_that_returns_other_tensors_is_refused_by_name(train: Train, words: str) -> None:
    reason, text = failure(a_task(train, lambda: nn.Sequential(nn.Linear(2, 1))))
    assert reason == "REASON_WRONG_TENSORS"
    assert words in text


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_update_that_is_not_finite_is_refused_by_name(value: float) -> None:
    def train(model: Any, _data: Any, _round: Round) -> None:
        model.weight.data[0, 1] = value

    reason, text = failure(a_task(train))
    assert reason == "REASON_NON_FINITE"
    assert "weight" in text


def test_a_job_with_another_model_is_refused_by_name() -> None:
    other, _ = payload_of(nn.Linear(2, 2).state_dict())
    reason, text = failure(a_task(nothing), other)
    assert reason == "REASON_SCHEMA_MISMATCH"
    assert "should be" in text


def test_for_a_job_with_another_model_no_data_is_read() -> None:
    read: list[Site] = []

    def data(site: Site) -> Data:
        read.append(site)
        return Data(train=None, examples=4, test_examples=4)

    task = Task(model=lambda: nn.Linear(2, 1), data=data, train=nothing, evaluate=nothing)
    runner = TaskRunner(task, SITE)
    other, base = payload_of(nn.Linear(2, 2).state_dict())
    with pytest.raises(TaskFailed, match="not the job's"):
        runner.train(THIS, other, base, bytearray(other.total_bytes))
    with pytest.raises(TaskFailed, match="not the job's"):
        runner.evaluate(THIS, other, base)
    assert read == []
    runner.evaluate(THIS, *first_model(task, 1))
    assert read == [SITE]


@pytest.mark.parametrize("examples", [0, -1, 2**31, 1.5, True, None])
def test_a_number_of_examples_that_cannot_be_is_refused(examples: Any) -> None:
    task = Task(
        model=lambda: nn.Linear(1, 1),
        data=lambda _: Data(train=None, examples=examples),
        train=nothing,
    )
    assert failure(task)[0] == "REASON_EXAMPLES_REFUSED"


def test_functions_that_return_something_else_are_named() -> None:
    no_data: Any = lambda _: [1, 2]  # noqa: E731  a wrong function in one line
    task = Task(model=lambda: nn.Linear(1, 1), data=no_data, train=nothing)
    assert "data returned list" in failure(task)[1]
    no_model: Any = dict
    assert "model returned dict" in failure(Task(no_model, no_data, nothing))[1]
