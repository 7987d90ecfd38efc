"""SCAFFOLD: rounds of several owners are those of the paper's algorithm 1 with option II, written out in NumPy."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn, optim

import cairn
from cairn.errors import UsageError
from cairn.tasks.first_model import first_model, first_split
from cairn.tasks.kept import KeptValues
from cairn.tasks.loader import TaskFailed
from cairn.tasks.runner import TaskRunner
from cairn.tasks.state_dict import read_state
from tests.unit.cairn.tasks.test_runner import SITE

ROUNDS, STEPS = 6, 5
RATES = [0.1, 0.1, 0.05, 0.05, 0.02]  # of the steps of a round
KEEPS = ("scaffold_c_own/*",)
Weights = NDArray[np.float64]


@dataclass(frozen=True)
class Problem:
    """Least squares on rows and targets of one owner: its loss is half the mean square, and its gradient known."""

    rows: Weights
    targets: Weights

    def gradient(self, weight: Weights) -> Weights:
        return (self.rows @ weight - self.targets) @ self.rows / len(self.targets)


def problems() -> list[Problem]:
    """Three owners that differ in scale and in what fits them best."""
    numbers = np.random.default_rng(3)
    return [
        Problem(scale * numbers.normal(size=(8, 2)), numbers.normal(size=8) + shift)
        for scale, shift in ((1.0, 0.0), (0.5, 3.0), (1.5, -2.0))
    ]


def build() -> nn.Module:
    return cairn.control_variates(nn.Sequential(nn.Linear(2, 1, bias=False)))


def train(model: nn.Module, data: cairn.Data, _round: cairn.Round) -> None:
    problem = data.train
    rows, targets = (torch.from_numpy(a).float() for a in (problem.rows, problem.targets))
    optimizer = optim.SGD(model.parameters(), lr=RATES[0])
    cairn.scaffold(optimizer, model)
    for rate in RATES:
        optimizer.param_groups[0]["lr"] = rate
        optimizer.zero_grad()
        ((model(rows)[:, 0] - targets).square().mean() / 2).backward()
        optimizer.step()


def a_task(problem: Problem, **others: Any) -> cairn.Task:
    data = cairn.Data(train=problem, examples=1)
    return cairn.Task(model=build, data=lambda _: data, train=train, **({"keeps": KEEPS} | others))


def algorithm(weight: Weights, counted: list[set[int]]) -> tuple[Weights, Weights, list[Weights]]:
    """x, c and each c_i after rounds in which these owners take part; c as Cairn averages it."""
    c, owns = np.zeros(2), [np.zeros(2) for _ in problems()]
    for taking_part in counted:
        changes, variates = [], []
        for owner in sorted(taking_part):
            y = weight.copy()
            for rate in RATES:
                y -= rate * (problems()[owner].gradient(y) - owns[owner] + c)
            new = owns[owner] - c + (weight - y) / sum(RATES)
            changes.append(y - weight)
            variates.append(new - owns[owner])
            owns[owner] = new
        weight = weight + np.mean(changes, axis=0)
        c = c + np.mean(variates, axis=0)
    return weight, c, owns


def rounds_of(counted: list[set[int]]) -> tuple[Weights, Weights, list[Weights], Weights]:
    """The same by tasks, of which the updates are averaged and what is kept lasts; and x at the start."""
    tasks = [a_task(problem) for problem in problems()]
    runners = [TaskRunner(task, SITE) for task in tasks]
    kept = [KeptValues.none_yet(first_split(task, 1).kept) for task in tasks]
    schema, base = first_model(tasks[0], 1)
    first = numbers(read_state(schema, bytearray(base)), "0.weight")
    for number, taking_part in enumerate(counted):
        updates = []
        for owner in sorted(taking_part):
            update = bytearray(schema.total_bytes)
            this = cairn.Round("job", number + 1, {})
            runners[owner].train(this, schema, bytearray(base), update, kept[owner])
            kept[owner] = replace(kept[owner], are_there=True)
            updates.append(np.frombuffer(update, "<f4").astype(np.float64))
        base = bytearray(np.mean(updates, axis=0).astype("<f4").tobytes())
    state = read_state(schema, base)
    owns = [numbers(each.read(), "scaffold_c_own/0/weight") for each in kept]
    return numbers(state, "0.weight"), numbers(state, "scaffold_c/0/weight"), owns, first


def numbers(state: Mapping[str, torch.Tensor], name: str) -> Weights:
    return state[name].clone().double().numpy().ravel() if name in state else np.zeros(2)


@pytest.mark.parametrize(
    "counted",
    [[{0, 1, 2}] * ROUNDS, [{0, 1, 2}, {0, 2}, {1, 2}, {0, 1, 2}]],
    ids=["everybody", "some are missing"],
)
def test_rounds_are_those_of_the_papers_algorithm(counted: list[set[int]]) -> None:
    weight, c, owns, first = rounds_of(counted)
    expected = algorithm(first, counted)
    np.testing.assert_allclose(weight, expected[0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(c, expected[1], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(owns, expected[2], rtol=1e-5, atol=1e-6)


def test_where_everybody_is_counted_the_common_variate_is_the_mean_of_the_own() -> None:
    _, c, owns, _ = rounds_of([{0, 1, 2}] * ROUNDS)
    np.testing.assert_allclose(c, np.mean(owns, axis=0), rtol=1e-5, atol=1e-6)


def test_it_comes_to_where_all_losses_together_are_least_and_plain_averaging_does_not() -> None:
    weight, _, _, first = rounds_of([{0, 1, 2}] * 150)
    hessian = sum(p.rows.T @ p.rows / len(p.targets) for p in problems())
    best = np.linalg.solve(hessian, sum(p.targets @ p.rows / len(p.targets) for p in problems()))
    plain = first
    for _ in range(150):
        trained = []
        for problem in problems():
            y = plain.copy()
            for rate in RATES:
                y -= rate * problem.gradient(y)
            trained.append(y)
        plain = np.mean(trained, axis=0)
    assert np.abs(weight - best).max() < 1e-3
    assert np.abs(plain - best).max() > 1e-2


def test_a_parameter_without_variates_is_trained_as_ever() -> None:
    torch.manual_seed(1)
    model = cairn.control_variates(
        nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1)), ("*", "!1.bias", "!0.*")
    )
    assert [name for name, _ in model.named_buffers()] == [
        "scaffold_c/1/weight",
        "scaffold_c_own/1/weight",
    ]
    model.get_buffer("scaffold_c/1/weight").fill_(1.0)
    model.get_buffer("scaffold_c_own/1/weight").fill_(0.25)
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    optimizer = optim.SGD(model.parameters(), lr=0.5)
    cairn.scaffold(optimizer, model)
    optimizer.zero_grad()
    model(torch.ones(1, 2)).sum().backward()
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    optimizer.step()
    for name, value in model.named_parameters():
        correction = 0.75 if name == "1.weight" else 0.0
        expected = before[name] - 0.5 * (gradients[name] + correction)
        torch.testing.assert_close(value.detach(), expected)


@pytest.mark.parametrize(
    ("build_optimizer", "words"),
    [
        (optim.Adam, "plain SGD"),
        (lambda p: optim.SGD(p, lr=0.1, momentum=0.9), "plain SGD"),
        (lambda p: optim.SGD(p, lr=0.1, maximize=True), "plain SGD"),
        (lambda _: optim.SGD(nn.Linear(1, 1).parameters(), lr=0.1), "nothing that the optimiser"),
    ],
)
def test_an_optimiser_for_which_the_formula_does_not_hold_is_refused(
    build_optimizer: Any, words: str
) -> None:
    model = build()
    with pytest.raises(UsageError, match=words):
        cairn.scaffold(build_optimizer(model.parameters()), model)


def test_a_step_with_a_closure_is_refused() -> None:
    model = build()
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    cairn.scaffold(optimizer, model)
    with pytest.raises(UsageError, match=r"cairn\.scaffold works with"):
        optimizer.step(lambda: 0.0)


@pytest.mark.parametrize(
    ("others", "words"),
    [
        ({"keeps": None}, r'must keep: add keeps=\("scaffold_c_own/\*",\)'),
        ({"exchanges": ("0.*",)}, r'must exchange: add "scaffold_c/\*" to its exchanges'),
        ({"keeps": (*KEEPS, "0.weight")}, "0.weight stays at this site, and its control variate"),
    ],
)
def test_variates_that_would_not_last_or_would_tell_of_what_stays_are_a_mistake(
    others: dict[str, Any], words: str
) -> None:
    task = a_task(problems()[0], **others)
    with pytest.raises(TaskFailed, match=words):
        TaskRunner(task, SITE).exchanged()


def test_a_pattern_for_variates_that_matches_no_parameter_is_a_mistake() -> None:
    with pytest.raises(
        UsageError, match=r"control_variates has 'haed\.\*', which matches no entry"
    ):
        cairn.control_variates(nn.Sequential(nn.Linear(1, 1)), ("haed.*",))
