"""A job of gradients: what leaves is what autograd gives, of trained parameters alone."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from cairn.errors import UsageError
from cairn.tasks.first_model import first_model, first_split
from cairn.tasks.kept import KeptValues
from cairn.tasks.loader import TaskFailed
from cairn.tasks.runner import TaskRunner
from cairn.tasks.state_dict import read_state
from cairn.tasks.task import Data, Round, Site, Task
from cairn.v1 import round_pb2 as pb

SITE = Site("bob", Path("rows"))
THIS = Round("job", 3, {})
Rows = tuple[Tensor, Tensor]
Loss = Callable[[nn.Module, Any], Tensor]


def a_network() -> nn.Module:
    torch.manual_seed(1)  # what is not exchanged begins with the same values in every round
    return nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(3 * 4 * 4, 5), nn.Linear(5, 2)
    )


def images(count: int, seed: int) -> Rows:
    generator = torch.Generator().manual_seed(seed)
    pictures = torch.randn(count, 1, 6, 6, generator=generator)
    return pictures, torch.randint(2, (count,), generator=generator)


def mean_loss(model: nn.Module, rows: Any) -> Tensor:
    pictures, labels = rows
    return functional.cross_entropy(model(pictures), labels)


def a_task(
    loss: Loss,
    model: Callable[[], nn.Module] = a_network,
    train: Any = None,
    examples: int = 4,
    exchanges: tuple[str, ...] | None = None,
) -> Task:
    def gradients(model: nn.Module, data: Data, _round: Round) -> Mapping[str, float]:
        value = loss(model, data.train)
        value.backward()  # type: ignore[no-untyped-call]  # not annotated in PyTorch
        return {"loss": value.item()}

    return Task(
        model=model,
        data=lambda _: Data(train=images(examples, examples), examples=examples),
        train=train,
        gradients=gradients,
        exchanges=exchanges,
    )


def sent(task: Task) -> dict[str, Tensor]:
    schema, base = first_model(task, 1, gradients=True)
    update = bytearray(schema.total_bytes)
    outcome = TaskRunner(task, SITE).gradients(THIS, schema, base, update)
    assert outcome.metrics.keys() == {"loss"}
    return {name: tensor.clone() for name, tensor in read_state(schema, update).items()}


def failure(task: Task) -> tuple[str, str]:
    with pytest.raises(TaskFailed) as caught:
        sent(task)
    return pb.Reason.Name(caught.value.reason), str(caught.value)


def autograd(loss: Loss, model: Callable[[], nn.Module], rows: Rows) -> dict[str, Tensor]:
    torch.manual_seed(1)
    plain = model().train()
    named = {name: p for name, p in plain.named_parameters() if p.requires_grad}
    found = torch.autograd.grad(loss(plain, rows), list(named.values()))
    return dict(zip(named, found, strict=True))


def same_bits(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


def test_what_leaves_of_a_network_is_what_autograd_gives_bit_by_bit() -> None:
    assert same_bits(sent(a_task(mean_loss)), autograd(mean_loss, a_network, images(4, 4)))


def test_averaged_by_examples_it_is_the_gradient_of_the_loss_over_everybodys_data() -> None:
    counts = (4, 7, 13)
    parts = [sent(a_task(mean_loss, examples=count)) for count in counts]
    everybodys = [images(count, count) for count in counts]
    together = torch.cat([x for x, _ in everybodys]), torch.cat([y for _, y in everybodys])
    for name, expected in autograd(mean_loss, a_network, together).items():
        stacked = np.stack([part[name].numpy().astype(np.float64) for part in parts])
        average = np.average(stacked, axis=0, weights=counts)
        np.testing.assert_allclose(average, expected.numpy(), rtol=1e-4, atol=1e-6)


def with_norm() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def test_buffers_neither_leave_nor_belong_to_the_jobs_model() -> None:
    task = a_task(mean_loss, with_norm)
    found = sent(task)
    assert same_bits(found, autograd(mean_loss, with_norm, images(4, 4)))
    buffers = {"2.running_mean", "2.running_var", "2.num_batches_tracked"}
    assert first_split(task, 1, gradients=True).private.keys() == buffers
    assert not buffers & found.keys()


def frozen() -> nn.Module:
    model = a_network()
    model[0].requires_grad_(requires_grad=False)  # type: ignore[index]  # a Sequential can be indexed
    return model


def test_a_frozen_parameter_neither_leaves_nor_belongs_to_the_jobs_model() -> None:
    found = sent(a_task(mean_loss, frozen))
    assert found.keys() == {"3.weight", "3.bias", "4.weight", "4.bias"}
    assert same_bits(found, autograd(mean_loss, frozen, images(4, 4)))


def test_of_a_task_that_exchanges_a_part_the_gradients_of_that_part_leave() -> None:
    found = sent(a_task(mean_loss, exchanges=("4.*",)))
    whole = autograd(mean_loss, a_network, images(4, 4))
    assert same_bits(found, {name: whole[name] for name in ("4.weight", "4.bias")})


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(2, 2), nn.Linear(2, 2)
        self.two.weight = self.one.weight

    def forward(self, rows: Tensor) -> Tensor:
        found: Tensor = self.two(self.one(rows))
        return found


def test_a_tied_parameter_has_one_gradient_under_each_of_its_names() -> None:
    def loss(model: nn.Module, _rows: Any) -> Tensor:
        return torch.square(model(torch.ones(1, 2))).sum()

    found = sent(a_task(loss, Tied))
    plain = autograd(loss, Tied, images(4, 4))
    assert same_bits(found, plain | {"two.weight": plain["one.weight"]})


class OneMemory(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Parameter(torch.ones(2))
        self.two = nn.Parameter(self.one.detach()[:1])


def test_two_parameters_that_are_one_memory_are_refused() -> None:
    task = a_task(lambda model, _: model.one.sum(), OneMemory)  # type: ignore[operator]  # a Parameter
    with pytest.raises(UsageError, match="the model's one shares its memory with two"):
        first_model(task, 1, gradients=True)


class Words(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(5, 2, sparse=True)
        self.unused = nn.Parameter(torch.ones(3, dtype=torch.float64))


def of_words(model: nn.Module, _rows: Any) -> Tensor:
    found: Tensor = model.words(torch.tensor([1, 1, 3])).sum()  # type: ignore[operator]  # an Embedding
    return found


def test_a_sparse_gradient_is_made_dense_and_none_is_zeros_of_the_parameters_type() -> None:
    found = sent(a_task(of_words, Words))
    assert found["words.weight"].tolist() == [[0, 0], [2, 2], [0, 0], [1, 1], [0, 0]]
    assert torch.equal(found["unused"], torch.zeros(3, dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_a_gradient_has_its_parameters_type(dtype: torch.dtype) -> None:
    def model() -> nn.Module:
        return nn.Linear(2, 1, dtype=dtype)

    def loss(model: nn.Module, _rows: Any) -> Tensor:
        found: Tensor = model(torch.ones(1, 2, dtype=dtype)).sum()
        return found

    found = sent(a_task(loss, model))
    assert {tensor.dtype for tensor in found.values()} == {dtype}
    assert found["weight"].tolist() == [[1, 1]]


def test_no_gradient_of_an_earlier_round_is_added_where_a_task_keeps_its_model() -> None:
    kept = a_network()
    task = a_task(mean_loss, lambda: kept)
    assert same_bits(sent(task), sent(task))


def test_a_task_that_calls_no_backward_is_told_so() -> None:
    task = replace(a_task(mean_loss), gradients=lambda *_: None)
    assert failure(task) == (
        "REASON_TASK_FAILED",
        "the task's gradients left no gradient in any parameter of the model; call loss.backward()",
    )


def test_a_parameter_that_is_taken_out_of_the_model_meanwhile_is_named() -> None:
    def gradients(model: Any, data: Data, _round: Round) -> None:
        mean_loss(model, data.train).backward()  # type: ignore[no-untyped-call]  # not annotated in PyTorch
        del model[4].bias

    reason, sentence = failure(replace(a_task(mean_loss), gradients=gradients))
    assert reason == "REASON_WRONG_TENSORS"
    assert "4.bias" in sentence


def test_a_model_of_which_nothing_is_trained_is_refused() -> None:
    task = a_task(mean_loss, lambda: a_network().requires_grad_(requires_grad=False))
    with pytest.raises(UsageError, match="none of the tensors that the task exchanges"):
        first_model(task, 1, gradients=True)


def no_data(_site: Site) -> Data:
    raise AssertionError("the data was opened")


FUNCTIONS = {"gradients": "gradients", "weights": "train", "statistics": "columns"}


@pytest.mark.parametrize("content", FUNCTIONS)
def test_what_the_task_lacks_is_known_without_its_data(content: str) -> None:
    all_three = replace(a_task(mean_loss, train=lambda *_: None), columns=lambda _: {})
    changes: dict[str, Any] = {"data": no_data, FUNCTIONS[content]: None}
    lacking = replace(all_three, **changes)
    exchanged = TaskRunner(lacking, SITE).exchanged()
    said = {each: exchanged.why_not_asked(each) for each in FUNCTIONS}
    assert f"has no {FUNCTIONS[content]} function" in said.pop(content)
    assert set(said.values()) == {""}


@pytest.mark.parametrize("part", ["gradients", "train"])
def test_a_function_that_the_task_lacks_is_missed_before_its_data_is_opened(part: str) -> None:
    both = a_task(mean_loss, train=lambda *_: None)
    lacks: dict[str, Any] = {part: None}
    lacking = replace(both, data=no_data, **lacks)
    schema, base = first_model(both, 1)
    runner = TaskRunner(lacking, SITE)
    with pytest.raises(TaskFailed) as caught:
        getattr(runner, part)(THIS, schema, base, bytearray(schema.total_bytes))
    assert caught.value.reason == pb.REASON_JOB_REFUSED


def test_the_model_of_a_job_of_weights_is_none_of_a_job_of_gradients_where_it_has_buffers() -> None:
    task = a_task(mean_loss, with_norm)
    exchanged = TaskRunner(task, SITE).exchanged()
    whole, trained = first_model(task, 1)[0], first_model(task, 1, gradients=True)[0]
    assert exchanged.why_not(whole) == exchanged.why_not(trained, gradients=True) == ""
    why = exchanged.why_not(whole, gradients=True)
    assert why.startswith("the job's model has 2.num_batches_tracked, which has no gradient")
    assert "2.num_batches_tracked I64[] is not part of the model" in exchanged.why_not(trained)


def test_an_evaluation_in_a_job_of_gradients_is_of_its_model() -> None:
    def evaluate(model: Any, _data: Any, _round: Round) -> dict[str, float]:
        return {"bias": model[3].bias[0].item(), "mean": model[2].running_mean[0].item()}

    task = replace(
        a_task(mean_loss, with_norm),
        evaluate=evaluate,
        data=lambda _: Data(train=None, examples=1, test_examples=2),
    )
    schema, base = first_model(task, 1, gradients=True)
    read_state(schema, base)["3.bias"].fill_(0.5)
    outcome = TaskRunner(task, SITE).evaluate(THIS, schema, base, gradients=True)
    assert outcome.metrics == {"bias": 0.5, "mean": 0.0}


STATISTICS = ("*.running_*", "*.num_batches_tracked")


def test_kept_statistics_of_batchnorm_go_on_from_round_to_round_and_never_leave() -> None:
    """As in plain PyTorch, where the same model has one forward pass a round and each with the same weights."""
    task = replace(a_task(mean_loss, with_norm), keeps=STATISTICS)
    split = first_split(task, 1, gradients=True)
    assert split.private == {}
    schema, base = first_model(task, 1, gradients=True)
    kept = KeptValues.none_yet(split.kept)
    runner, update = TaskRunner(task, SITE), bytearray(schema.total_bytes)
    torch.manual_seed(1)
    expected = with_norm().train()
    for _ in range(3):
        expected(images(4, 4)[0])
        runner.gradients(THIS, schema, bytearray(base), update, kept)
        kept = replace(kept, are_there=True)
        assert same_bits(kept.read(), dict(expected.named_buffers()))
        assert same_bits(read_state(schema, update), autograd(mean_loss, with_norm, images(4, 4)))


def test_an_evaluation_in_a_job_of_gradients_has_what_is_kept() -> None:
    task = replace(
        a_task(mean_loss, with_norm),
        evaluate=lambda model, _, __: {"mean": model[2].running_mean[0].item()},  # type: ignore[index]  # a Sequential can be indexed
        data=lambda _: Data(train=None, examples=1, test_examples=2),
        keeps=STATISTICS,
    )
    schema, base = first_model(task, 1, gradients=True)
    kept = replace(KeptValues.none_yet(first_split(task, 1).kept), are_there=True)
    kept.write({**kept.read(), "2.running_mean": torch.full((4,), 0.75)})
    outcome = TaskRunner(task, SITE).evaluate(THIS, schema, base, kept, gradients=True)
    assert outcome.metrics == {"mean": 0.75}


def test_gradients_that_change_the_shape_of_what_is_kept_fail_and_leave_it() -> None:
    def gradients(model: Any, data: Data, _round: Round) -> None:
        mean_loss(model, data.train).backward()  # type: ignore[no-untyped-call]  # not annotated in PyTorch
        model[2].running_mean = torch.zeros(3)

    task = replace(a_task(mean_loss, with_norm), gradients=gradients, keeps=STATISTICS)
    schema, base = first_model(task, 1, gradients=True)
    kept = KeptValues.none_yet(first_split(task, 1).kept)
    with pytest.raises(TaskFailed, match=r"2\.running_mean F32\[3\] should be") as caught:
        TaskRunner(task, SITE).gradients(THIS, schema, base, bytearray(schema.total_bytes), kept)
    assert caught.value.reason == pb.REASON_WRONG_TENSORS
    assert bytes(kept.values) == bytes(kept.schema.total_bytes)
