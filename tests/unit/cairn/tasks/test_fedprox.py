"""FedProx: a step is the one that the paper's term takes where autograd computes its gradient."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn, optim

import cairn
from cairn.errors import UsageError

MU = 0.3


class Model(nn.Module):
    """Two layers, of which one is used in every other step only, and a frozen one."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 4)
        self.head = nn.Linear(4, 1)
        self.other = nn.Linear(4, 1)
        self.frozen = nn.Linear(3, 3).requires_grad_(False)

    def forward(self, rows: torch.Tensor, step: int) -> torch.Tensor:
        head = self.head if step % 2 else self.other
        loss: torch.Tensor = head(self.layer(self.frozen(rows)).tanh()).square().mean()
        return loss


OPTIMIZERS: list[Callable[[nn.Module], optim.Optimizer]] = [
    lambda model: optim.SGD(model.parameters(), lr=0.1),
    lambda model: optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01),
    lambda model: optim.Adam(model.parameters(), lr=0.01),
    lambda model: optim.SGD(
        [{"params": model.layer.parameters(), "lr": 0.2}, {"params": model.head.parameters()}],  # type: ignore[union-attr]  # layers
        lr=0.1,
    ),
]


@pytest.mark.parametrize("build", OPTIMIZERS)
def test_every_step_is_that_of_the_loss_with_the_papers_term(
    build: Callable[[nn.Module], optim.Optimizer],
) -> None:
    torch.manual_seed(1)
    model = Model().double()
    expected = copy.deepcopy(model)
    batches = torch.randn(6, 5, 3, dtype=torch.float64)

    optimizer = build(model)
    cairn.prox(optimizer, MU)
    for step, rows in enumerate(batches):
        optimizer.zero_grad()
        model(rows, step).backward()
        optimizer.step()

    optimizer = build(expected)
    trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    trained = [parameter for parameter in trained if parameter.requires_grad]
    start = [parameter.detach().clone() for parameter in trained]
    for step, rows in enumerate(batches):
        optimizer.zero_grad()
        term = sum((w - w0).square().sum() for w, w0 in zip(trained, start, strict=True))
        (expected(rows, step) + MU / 2 * term).backward()
        optimizer.step()

    for name, value in expected.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], value, rtol=1e-12, atol=1e-15)


def test_without_a_pull_it_changes_nothing() -> None:
    results = []
    for mu in (None, 0.0):
        torch.manual_seed(1)
        model = Model()
        optimizer = OPTIMIZERS[0](model)
        if mu is not None:
            cairn.prox(optimizer, mu)
        for step in range(1, 6, 2):
            optimizer.zero_grad()
            model(torch.ones(2, 3), step).backward()
            optimizer.step()
        results.append(model.state_dict())
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])


@pytest.mark.parametrize("mu", [-0.1, float("nan"), float("inf")])
def test_a_pull_that_is_none_is_a_mistake(mu: float) -> None:
    with pytest.raises(UsageError, match=r"cairn\.prox: mu is"):
        cairn.prox(OPTIMIZERS[0](Model()), mu)


@pytest.mark.parametrize("by_name", [True, False])
def test_a_closure_would_leave_the_term_out_and_is_refused(
    by_name: bool,  # noqa: FBT001 - a parameter of the test
) -> None:
    model = Model()
    optimizer = OPTIMIZERS[0](model)
    cairn.prox(optimizer, MU)

    def closure() -> float:
        return float(model(torch.ones(1, 3), 1))

    with pytest.raises(UsageError, match="not with a closure"):
        optimizer.step(closure=closure) if by_name else optimizer.step(closure)
