"""One round of a task: what goes in, what comes out, and every way in which it can be wrong."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from cairn.model.schema import Schema
from cairn.tasks.first_model import first_model, first_split
from cairn.tasks.kept import KeptValues
from cairn.tasks.loader import TaskFailed
from cairn.tasks.runner import Outcome, TaskRunner
from cairn.tasks.state_dict import payload_of, read_state
from cairn.tasks.task import Data, Round, Site, Task
from cairn.v1 import round_pb2 as pb

SITE = Site("bob", Path("rows"))
THIS = Round("job", 3, {"lr": 0.5})
Train = Callable[[nn.Module, Any, Round], Mapping[str, float] | None]


def a_task(
    train: Train,
    model: Callable[[], nn.Module] = lambda: nn.Linear(2, 1),
    exchanges: tuple[str, ...] | None = None,
) -> Task:
    data = Data(train=None, examples=4)
    return Task(model=model, data=lambda _: data, train=train, exchanges=exchanges)


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


class Partial(nn.Module):
    """A layer and BatchNorm that stay, a head and BatchNorm that travel; all begin the same each time."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)
        self.norm = nn.BatchNorm1d(2)
        self.shared = nn.BatchNorm1d(2)
        self.head = nn.Linear(2, 1)
        with torch.no_grad():
            self.layer.weight.copy_(torch.tensor([[3.0, -1.0], [0.5, 2.0]]))
            self.layer.bias.fill_(7.0)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.head(self.shared(self.norm(self.layer(rows))))
        return out


PART = ("head.*", "shared.*")


def step(model: nn.Module, _data: Any = None, _round: Any = None) -> None:
    """A step of training that changes every tensor there is."""
    opt = torch.optim.SGD(model.parameters(), lr=0.1)
    opt.zero_grad()
    model(torch.tensor([[1.0, 2.0], [-3.0, 0.5], [0.0, 1.0]])).square().sum().backward()
    opt.step()


def test_only_what_the_task_exchanges_travels_and_the_rest_begins_each_round_as_built() -> None:
    seen: list[dict[str, torch.Tensor]] = []

    def train(model: nn.Module, data: Any, this: Round) -> None:
        seen.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
        step(model, data, this)

    task = a_task(train, Partial, PART)
    schema, base = first_model(task, 1)
    assert {spec.name.split(".")[0] for spec in schema.tensors} == {"head", "shared"}
    assert schema.total_bytes == 4 * (2 + 1 + 4 * 2) + 8  # of 4 * (6 + 8 + 8 + 3) + 2 * 8
    torch.manual_seed(1)
    plain = Partial().train()
    built = {name: tensor.clone() for name, tensor in plain.state_dict().items()}
    runner = TaskRunner(task, SITE)
    for _ in range(2):
        update = bytearray(schema.total_bytes)
        runner.train(THIS, schema, base, update)
        assert all(torch.equal(seen[-1][name], value) for name, value in plain.state_dict().items())
        step(plain)
        expected = plain.state_dict()
        state = read_state(schema, update)
        assert all(torch.equal(tensor, expected[name]) for name, tensor in state.items())
        plain.load_state_dict({n: t for n, t in built.items() if n not in state}, strict=False)
        base = update
    assert seen[1]["shared.num_batches_tracked"] == 1
    assert seen[1]["norm.num_batches_tracked"] == 0


def test_an_evaluation_gets_the_base_and_the_rest_as_built() -> None:
    def evaluate(model: Any, _data: Any, _round: Round) -> dict[str, float]:
        return {"head": model.head.bias.item(), "layer": model.layer.bias[0].item()}

    task = Task(
        model=Partial,
        data=lambda _: Data(train=None, examples=4, test_examples=2),
        train=nothing,
        evaluate=evaluate,
        exchanges=("head.bias",),
    )
    schema, base = payload_of({"head.bias": torch.tensor([-4.0])})
    outcome = TaskRunner(task, SITE).evaluate(THIS, schema, base)
    assert outcome.metrics == {"head": -4.0, "layer": 7.0}


def test_what_stays_may_be_of_any_type_and_change_its_shape() -> None:
    class Model(nn.Linear):
        def __init__(self) -> None:
            super().__init__(2, 1)
            self.register_buffer("phase", torch.zeros(3, dtype=torch.complex64))

        def get_extra_state(self) -> Any:
            return {"read": 1}

        def set_extra_state(self, _state: Any) -> None:
            raise AssertionError

    def train(model: Any, _data: Any, _round: Round) -> None:
        model.phase = torch.ones(5, dtype=torch.complex64)
        model.register_buffer("cache", torch.ones(2))
        model.bias.data += 1

    torch.manual_seed(1)
    expected = nn.Linear(2, 1).bias.detach() + 1
    _, state = trained(a_task(train, Model, ("weight", "bias")))
    assert state.keys() == {"weight", "bias"}
    assert torch.equal(state["bias"], expected)


def tie(model: Any, _data: Any, _round: Round) -> None:
    model.layer.weight = nn.Parameter(torch.ones(2, 2))
    model.head.weight = nn.Parameter(model.layer.weight[:1])


def drop_head(model: Any, _data: Any, _round: Round) -> None:
    del model.head


def grow(model: Any, _data: Any, _round: Round) -> None:
    model.head.register_buffer("steps", torch.zeros(1))


@pytest.mark.parametrize(
    ("train", "words"),
    [
        (tie, "layer.weight stays by the task's exchanges, but it shares its memory"),
        (drop_head, "'head.*', which matches no entry"),
        (grow, "head.steps F32[1] is not part of the model"),
    ],
)
def test_training_that_changes_what_travels_is_refused(train: Train, words: str) -> None:
    reason, text = failure(a_task(train, Partial, PART))
    assert reason == "REASON_WRONG_TENSORS"
    assert words in text


@pytest.mark.parametrize(
    ("jobs", "exchanges", "words"),
    [
        (None, PART, "the job's model has norm.num_batches_tracked, which stays at this site"),
        (
            PART,
            None,
            "the task's model is not the job's: norm.num_batches_tracked I64[] is not part of",
        ),
        (("head.*",), PART, "what the task exchanges is not the job's: shared."),
        (("head.*",), ("head.weight",), "the job's model has head.bias, which stays at this site"),
        (PART, ("haed.*",), "'haed.*', which matches no entry"),
    ],
)
def test_a_job_that_exchanges_other_entries_is_refused_by_name_before_data_is_read(
    jobs: tuple[str, ...] | None, exchanges: tuple[str, ...] | None, words: str
) -> None:
    schema, base = first_model(a_task(nothing, Partial, jobs), 1)
    update = bytearray(schema.total_bytes)

    def data(_site: Site) -> Data:
        raise AssertionError

    task = Task(model=Partial, data=data, train=nothing, evaluate=nothing, exchanges=exchanges)
    with pytest.raises(TaskFailed) as training:
        TaskRunner(task, SITE).train(THIS, schema, base, update)
    with pytest.raises(TaskFailed) as evaluating:
        TaskRunner(task, SITE).evaluate(THIS, schema, base)
    for caught in (training, evaluating):
        assert caught.value.reason == pb.REASON_SCHEMA_MISMATCH
        assert words in str(caught.value)
    assert update == bytes(schema.total_bytes)


@pytest.mark.parametrize("exchanges", [None, ("weight", "bias")])
def test_a_model_that_does_not_load_what_it_has_fails_the_task(
    exchanges: tuple[str, ...] | None,
) -> None:
    class Deaf(nn.Linear):
        def load_state_dict(
            self,
            state_dict: Mapping[str, Any],
            strict: bool = True,  # noqa: FBT001, FBT002  PyTorch's own signature
            assign: bool = False,  # noqa: FBT001, FBT002  PyTorch's own signature
        ) -> Any:
            return super().load_state_dict({"bias": state_dict["bias"]}, strict, assign)

    assert failure(a_task(nothing, lambda: Deaf(2, 1), exchanges)) == (
        "REASON_TASK_FAILED",
        "the task's model does not load weight, which its state_dict has",
    )


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
    reason, sentence = failure(task)
    assert reason == "REASON_EXAMPLES_REFUSED"
    assert "pass it as cairn.Data(..., examples=...)" in sentence


def test_functions_that_return_something_else_are_named() -> None:
    no_data: Any = lambda _: [1, 2]  # noqa: E731  a wrong function in one line
    task = Task(model=lambda: nn.Linear(1, 1), data=no_data, train=nothing)
    assert "data returned list" in failure(task)[1]
    no_model: Any = dict
    assert "model returned dict" in failure(Task(no_model, no_data, nothing))[1]


def a_local_norm() -> nn.Module:
    return nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 1))


def one_step(model: nn.Module, _data: Any, this: Round) -> None:
    torch.manual_seed(this.number)
    model.zero_grad()
    model(torch.randn(5, 2)).square().sum().backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()


def a_keeping_task(train: Train = one_step) -> Task:
    return Task(
        model=a_local_norm,
        data=lambda _: Data(train=None, examples=1, test_examples=1),
        train=train,
        evaluate=lambda model, _, __: {"mean": model[0].running_mean.sum()},  # type: ignore[index]  # a Sequential can be indexed
        keeps=("0.*",),
    )


def test_what_is_kept_goes_on_from_round_to_round_beside_a_base_that_does_not() -> None:
    """As plain PyTorch does it in which only the shared layer is put back between two rounds."""
    task = a_keeping_task()
    schema, base = first_model(task, 1)
    assert [spec.name for spec in schema.tensors] == ["1.bias", "1.weight"]
    kept = KeptValues.none_yet(first_split(task, 1).kept)
    runner, update = TaskRunner(task, SITE), bytearray(schema.total_bytes)
    expected = a_local_norm().train()
    for number in (1, 2, 3):
        expected.load_state_dict(read_state(schema, base), strict=False)
        one_step(expected, None, Round("job", number, {}))
        runner.train(Round("job", number, {}), schema, bytearray(base), update, kept)
        kept = replace(kept, are_there=True)
        state = read_state(schema, update) | kept.read()
        assert state.keys() == expected.state_dict().keys()
        assert all(torch.equal(state[n], tensor) for n, tensor in expected.state_dict().items())
    assert kept.read()["0.num_batches_tracked"] == 3


def test_an_evaluation_has_what_is_kept_and_changes_none_of_it() -> None:
    task = a_keeping_task()
    schema, base = first_model(task, 1)
    kept = replace(KeptValues.none_yet(first_split(task, 1).kept), are_there=True)
    kept.write({**kept.read(), "0.running_mean": torch.tensor([2.0, 0.25])})
    before = bytes(kept.values)
    outcome = TaskRunner(task, SITE).evaluate(THIS, schema, base, kept)
    assert outcome.metrics == {"mean": 2.25}
    assert bytes(kept.values) == before


def test_without_memory_for_it_what_is_kept_begins_as_it_is_built() -> None:
    def train(model: Any, _data: Any, _round: Round) -> None:
        assert model[0].num_batches_tracked == 0
        one_step(model, None, _round)

    task = a_keeping_task(train)
    schema, base = first_model(task, 1)
    runner = TaskRunner(task, SITE)
    for _ in range(2):
        runner.train(THIS, schema, bytearray(base), bytearray(schema.total_bytes))


def test_a_training_that_changes_the_shape_of_what_is_kept_fails_and_leaves_it() -> None:
    def train(model: Any, _data: Any, _round: Round) -> None:
        model[0].running_mean = torch.zeros(3)

    task = a_keeping_task(train)
    schema, base = first_model(task, 1)
    kept = KeptValues.none_yet(first_split(task, 1).kept)
    with pytest.raises(TaskFailed, match=r"0\.running_mean F32\[3\] should be .*\[2\]") as caught:
        TaskRunner(task, SITE).train(THIS, schema, base, bytearray(schema.total_bytes), kept)
    assert caught.value.reason == pb.REASON_WRONG_TENSORS
    assert bytes(kept.values) == bytes(kept.schema.total_bytes)


def test_a_model_that_keeps_something_else_than_the_node_has_memory_for_is_not_trained() -> None:
    task = a_keeping_task()
    schema, base = first_model(task, 1)
    kept = KeptValues.none_yet({"0.weight": torch.zeros(2)})
    with pytest.raises(TaskFailed, match="keeps other tensors than when the round began"):
        TaskRunner(task, SITE).train(THIS, schema, base, bytearray(schema.total_bytes), kept)


def test_what_cannot_be_written_down_cannot_be_kept() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(1, 1)
            self.register_buffer("phase", torch.zeros(2, dtype=torch.complex64))

    task = replace(a_task(nothing, Model), keeps=("phase",))
    with pytest.raises(TaskFailed, match="phase is of type complex64, which cannot be kept"):
        TaskRunner(task, SITE).exchanged()


def test_a_job_that_asks_for_what_is_kept_is_told_by_which_rule_it_stays() -> None:
    task = a_keeping_task()
    whole, base = payload_of(a_local_norm().state_dict())
    with pytest.raises(TaskFailed, match="which stays at this site by the task's keeps"):
        TaskRunner(task, SITE).train(THIS, whole, base, bytearray(whole.total_bytes))
