"""`cairn.private` around a plain loop, its noise and its batches, and the mistakes that it finds."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from opacus import PrivacyEngine
from scipy import stats  # type: ignore[import-untyped]  # it has no types
from torch import Tensor, nn, optim
from torch.utils.data import DataLoader, SubsetRandomSampler, TensorDataset

import cairn
from cairn.errors import UsageError
from cairn.tasks.loader import TaskFailed
from cairn.tasks.private import Privacy
from cairn.tasks.private_training import PrivateTraining
from cairn.tasks.secure_noise import PoissonSampler, gaussian
from cairn.v1 import round_pb2 as pb

Asked = list[tuple[float, int]]
Batches = DataLoader[Any]
Loop = Callable[[nn.Module, optim.Optimizer, Batches], None]
RECORDS = 24


def network() -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(3, 4), nn.GroupNorm(2, 4), nn.Tanh(), nn.Linear(4, 2))


def batches(size: int = 6) -> Batches:
    torch.manual_seed(4)
    rows, labels = torch.randn(RECORDS, 3), torch.arange(RECORDS) % 2
    return DataLoader(TensorDataset(rows, labels), batch_size=size, shuffle=True)


def sgd(model: nn.Module, **more: Any) -> optim.Optimizer:
    return optim.SGD(model.parameters(), lr=0.1, **more)


def steps(model: nn.Module, optimizer: optim.Optimizer, loader: Batches) -> None:
    for rows, labels in loader:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(rows), labels)
        loss.backward()  # type: ignore[no-untyped-call]  # not annotated in PyTorch
        optimizer.step()


def trained(
    train: Callable[[nn.Module], None],
    model: nn.Module | None = None,
    *,
    noise: float = 1.0,
    clip: float = 1.0,
) -> Asked:
    """Run a task's train as a round does; returns what the owner's node was asked for."""
    asked: Asked = []
    model = network() if model is None else model
    privacy = Privacy(noise, clip, lambda rate, count: asked.append((rate, count)))
    with PrivateTraining(privacy, model.train()).under_way():
        train(model)
    return asked


def test_the_whole_plan_is_asked_for_before_the_first_step_and_the_model_keeps_its_names() -> None:
    model = network()
    before = {name: value.clone() for name, value in model.state_dict().items()}

    def train(model: nn.Module) -> None:
        private, optimizer, loader = cairn.private(model, sgd(model), batches(), epochs=2)
        for _ in range(2):
            steps(private, optimizer, loader)

    assert trained(train, model) == [(1 / 4, 8)]
    after = model.state_dict()
    assert list(after) == list(before)
    assert not any(torch.equal(value, before[name]) for name, value in after.items())


def test_without_noise_a_step_is_that_of_opacus_own_engine() -> None:
    """Both draw all records, so that they compute the same."""
    ours, theirs = network(), network()
    rows = batches(RECORDS)

    def train(model: nn.Module) -> None:
        steps(*cairn.private(model, sgd(model, momentum=0.9), rows, epochs=1))

    trained(train, ours, noise=1e-12, clip=0.5)
    with pytest.warns(UserWarning, match="Secure RNG"):
        engine = PrivacyEngine()
    optimizer = sgd(theirs, momentum=0.9)
    with pytest.warns(UserWarning, match="Full backward hook"):
        steps(
            *engine.make_private(
                module=theirs,
                optimizer=optimizer,
                data_loader=rows,
                noise_multiplier=0.0,
                max_grad_norm=0.5,
            )
        )
    for name, value in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], value, rtol=1e-5, atol=1e-7)


def test_what_a_step_adds_is_gaussian_noise_of_the_owners_scale_divided_by_the_expected_batch() -> (
    None
):
    """Of records without a gradient, nothing else moves the weights."""
    model = nn.Linear(200, 100, bias=False)
    start = model.weight.detach().clone()
    rows = DataLoader(TensorDataset(torch.zeros(10, 200), torch.zeros(10)), batch_size=5)

    def train(model: nn.Module) -> None:
        optimizer = optim.SGD(model.parameters(), lr=1.0)
        private, stepped, loader = cairn.private(model, optimizer, rows, epochs=1)
        for inputs, _ in loader:
            stepped.zero_grad()
            private(inputs).sum().backward()
            stepped.step()

    trained(train, model, noise=3.0, clip=0.5)
    moved = (model.weight.detach() - start).double().numpy().ravel()
    std = 3.0 * 0.5 / 5 * np.sqrt(2)  # two steps, of five records each
    assert stats.kstest(moved / std, "norm").pvalue > 1e-6


def test_the_noise_is_standard_gaussian_and_no_seed_repeats_it() -> None:
    torch.manual_seed(0)
    one = gaussian(torch.Size([300, 500]), 2.0)
    torch.manual_seed(0)
    other = gaussian(torch.Size([300, 500]), 2.0)
    assert (one.shape, one.dtype) == ((300, 500), torch.float64)
    assert not torch.isin(one, other).any()
    for noise in (one, other):
        assert stats.kstest(noise.numpy().ravel() / 2.0, "norm").pvalue > 1e-6
    assert abs(np.corrcoef(one.numpy().ravel(), other.numpy().ravel())[0, 1]) < 0.015


@pytest.mark.parametrize("shape", [(), (1,), (0, 3), (3, 5)])
def test_noise_has_the_shape_that_is_asked_for(shape: tuple[int, ...]) -> None:
    assert gaussian(torch.Size(shape), 1.0).shape == shape


def test_each_record_is_drawn_independently_with_the_probability_that_is_accounted() -> None:
    sampler = PoissonSampler(size=200, batches=8)
    drawn = np.zeros((500, 200))
    for epoch in range(0, 500, 8):
        for row, batch in zip(drawn[epoch : epoch + 8], sampler, strict=False):
            row[batch] = 1
    total = int(drawn.sum())
    assert stats.binomtest(total, drawn.size, 1 / 8).pvalue > 1e-6
    sizes = drawn.sum(1)  # as many as independent draws give: binomial, and not fixed
    assert 0.7 < sizes.var() / (200 / 8 * 7 / 8) < 1.4


def test_a_batch_may_be_empty_and_still_takes_a_noisy_step() -> None:
    model = network()
    start = model.state_dict()["0.weight"].clone()
    few = DataLoader(TensorDataset(torch.randn(4, 3), torch.zeros(4, dtype=torch.long)))
    sizes: list[int] = []

    def train(model: nn.Module) -> None:
        private, optimizer, loader = cairn.private(model, sgd(model), few, epochs=12)
        for _ in range(12):
            for rows, labels in loader:
                sizes.append(len(rows))
                optimizer.zero_grad()
                loss = nn.functional.cross_entropy(private(rows), labels)
                loss.backward()  # type: ignore[no-untyped-call]  # not annotated in PyTorch
                optimizer.step()

    trained(train, model)
    assert len(sizes) == 48
    assert 0 in sizes  # by chance not with a probability of 1e-7
    assert torch.isfinite(model.state_dict()["0.weight"]).all()
    assert not torch.equal(model.state_dict()["0.weight"], start)


def test_the_loops_of_a_round_are_each_asked_for_and_another_round_may_have_the_same_model() -> (
    None
):
    model = network()

    def train(model: nn.Module) -> None:
        for size in (6, 12):
            steps(*cairn.private(model, sgd(model), batches(size), epochs=1))

    for _ in range(2):
        assert trained(train, model) == [(1 / 4, 4), (1 / 2, 2)]


def test_the_term_of_fedprox_is_added_after_the_noise_before_or_after_the_call() -> None:
    """Where all else is nothing, a step along mu * (w - w_round) from w_round + d leaves (1 - lr * mu) * d."""
    for is_before in (True, False):
        model = nn.Linear(2, 1, bias=False)
        start = model.weight.detach().clone()
        rows = DataLoader(TensorDataset(torch.zeros(4, 2), torch.zeros(4)), batch_size=4)

        def train(model: nn.Module, is_before: bool = is_before, rows: Batches = rows) -> None:  # noqa: FBT001
            optimizer = optim.SGD(model.parameters(), lr=0.5)
            if is_before:
                cairn.prox(optimizer, 1.0)
            private, stepped, loader = cairn.private(model, optimizer, rows, epochs=1)
            if not is_before:
                cairn.prox(stepped, 1.0)
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.add_(8.0)
            for inputs, _ in loader:
                stepped.zero_grad()
                private(inputs).sum().backward()
                stepped.step()

        trained(train, model, noise=1e-12)
        torch.testing.assert_close(model.weight.detach(), start + 4.0)


def test_a_frozen_layer_stays_and_only_the_others_are_trained() -> None:
    model = network()
    model[0].requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}

    def train(model: nn.Module) -> None:
        steps(*cairn.private(model, sgd(model), batches(), epochs=1))

    trained(train, model)
    same = [name for name, value in model.state_dict().items() if torch.equal(value, before[name])]
    assert same == ["0.weight", "0.bias"]


def refusal(train: Callable[[nn.Module], None], model: nn.Module | None = None) -> str:
    with pytest.raises((UsageError, TaskFailed)) as refused:
        trained(train, model)
    return str(refused.value)


def test_a_training_without_it_is_refused() -> None:
    assert "trained without cairn.private" in refused_loop(steps, asks=False)


def refused_loop(loop: Loop, *, asks: bool = True) -> str:
    """What is said where a loop goes on with the model, optimizer and loader that were handed in."""

    def train(model: nn.Module) -> None:
        optimizer, loader = sgd(model), batches()
        if asks:
            cairn.private(model, optimizer, loader, epochs=1)
        loop(model, optimizer, loader)

    return refusal(train)


def test_a_step_of_the_optimizer_that_was_handed_in_is_refused() -> None:
    assert "steps the optimizer that was handed in" in refused_loop(steps)


def test_a_step_on_a_batch_of_the_loader_that_was_handed_in_is_refused() -> None:
    def train(model: nn.Module) -> None:
        loader = batches()
        private, optimizer, _ = cairn.private(model, sgd(model), loader, epochs=1)
        steps(private, optimizer, loader)

    assert "a batch that the returned loader did not draw" in refusal(train)


def test_one_epoch_more_than_was_asked_for_is_refused() -> None:
    def train(model: nn.Module) -> None:
        private, optimizer, loader = cairn.private(model, sgd(model), batches(), epochs=1)
        steps(private, optimizer, loader)
        steps(private, optimizer, loader)

    assert "one step more than the 4 that were asked for" in refusal(train)


def test_a_weight_that_was_trained_before_is_refused_and_nothing_is_asked_for() -> None:
    def train(model: nn.Module) -> None:
        steps(model, sgd(model), batches())
        cairn.private(model, sgd(model), batches(), epochs=1)

    assert "0.weight is not that of the round's model any more" in refusal(train)


@pytest.mark.parametrize("name", ["3.weight", "mean"])
def test_an_entry_that_another_loop_changed_is_refused(name: str) -> None:
    """A layer that the private optimizer leaves out, and a buffer."""
    model = network()
    model.register_buffer("mean", torch.zeros(3))

    def train(model: nn.Module) -> None:
        first = model.get_submodule("0")
        optimizer = optim.SGD(first.parameters(), lr=0.1)
        inner, outer, loader = cairn.private(first, optimizer, batches(), epochs=1)
        for rows, _ in loader:
            outer.zero_grad()
            inner(rows).square().mean().backward()
            outer.step()
        with torch.no_grad():
            model.state_dict()[name].add_(1.0)

    assert f"training changed {name}, which the optimizer of cairn.private does not" in refusal(
        train, model
    )


def test_a_model_with_batch_norm_is_refused_with_the_layer_and_its_cure() -> None:
    for norm in (nn.BatchNorm1d(4), nn.BatchNorm1d(4, affine=False)):
        model = nn.Sequential(nn.Linear(3, 4), norm, nn.Linear(4, 2))
        said = refusal(lambda m: steps(*cairn.private(m, sgd(m), batches(), epochs=1)), model)
        assert "the model's 1 is a BatchNorm1d" in said
        assert "use nn.GroupNorm" in said


def test_control_variates_are_refused() -> None:
    model = cairn.control_variates(network())
    said = refusal(lambda m: steps(*cairn.private(m, sgd(m), batches(), epochs=1)), model)
    assert "leave cairn.control_variates out" in said


PAIRS = TensorDataset(torch.zeros(4, 3), torch.zeros(4))


class Endless(torch.utils.data.IterableDataset[Tensor]):
    def __iter__(self) -> Iterator[Tensor]:
        return iter(())


@pytest.mark.parametrize(
    ("loader", "epochs", "complaint"),
    [
        (batches, 0, "epochs is 0"),
        (batches, True, "epochs is True"),
        (batches, 1.0, "epochs is 1.0"),
        (lambda: DataLoader(Endless()), 1, "has no length"),
        (lambda: DataLoader(TensorDataset(torch.zeros(0, 3))), 1, "is empty"),
        (lambda: DataLoader(PAIRS, sampler=SubsetRandomSampler([0, 1])), 1, "give it a Subset"),
        (lambda: DataLoader(PAIRS, batch_sampler=[[0], [1]]), 1, "give it a Subset"),
        (lambda: DataLoader([torch.zeros(3)] * 4), 1, "no tuple of tensors"),  # type: ignore[arg-type]  # a list has what a dataset needs
    ],
    ids=["none", "bool", "float", "endless", "empty", "sampler", "batches", "bare"],
)
def test_a_loader_or_a_number_of_epochs_that_cannot_be_accounted_is_refused(
    loader: Callable[[], Batches], epochs: int, complaint: str
) -> None:
    assert complaint in refusal(
        lambda model: steps(*cairn.private(model, sgd(model), loader(), epochs=epochs))
    )


@pytest.mark.parametrize(
    "other", [lambda _: network(), lambda model: model], ids=["other", "twice"]
)
def test_an_optimizer_of_another_model_or_a_private_one_is_refused(
    other: Callable[[nn.Module], nn.Module],
) -> None:
    def train(model: nn.Module) -> None:
        optimizer = sgd(other(model))
        _, private, _ = cairn.private(model, optimizer, batches(), epochs=1)
        cairn.private(model, private, batches(), epochs=1)

    assert "a plain optimizer of this model's own parameters" in refusal(train)


def test_what_the_owner_does_not_allow_ends_the_training_before_anything_is_drawn() -> None:
    model = network()
    before = {name: value.clone() for name, value in model.state_dict().items()}

    def spend(_rate: float, _steps: int) -> None:
        raise TaskFailed("the budget is spent", pb.REASON_BUDGET_SPENT)

    training = PrivateTraining(Privacy(1.0, 1.0, spend), model.train())
    with pytest.raises(TaskFailed, match="the budget is spent"), training.under_way():
        steps(*cairn.private(model, sgd(model), batches(), epochs=1))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_outside_a_round_of_an_owner_that_asks_for_it_the_cure_is_named() -> None:
    model = network()
    with pytest.raises(UsageError, match=r"add a table \[tasks.NAME.private\]"):
        cairn.private(model, sgd(model), batches(), epochs=1)
