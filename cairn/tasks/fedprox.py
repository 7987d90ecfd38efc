"""FedProx (Li et al. 2020, arXiv 1812.06127): pulls the local training back to the round's weights. Imports no torch."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from cairn.errors import UsageError

if TYPE_CHECKING:
    from torch.optim import Optimizer


def prox(optimizer: "Optimizer", mu: float) -> None:
    """Train on the loss plus mu / 2 * ||w - w_round||^2, the proximal term of the paper's equation (2).

        optimizer = optim.SGD(model.parameters(), lr=0.1)
        cairn.prox(optimizer, mu=0.01)

    Call it once, before the first step of a round: w_round is what the optimiser's parameters are then, those that
    require a gradient, and it is kept as a copy. Before every step, a hook of the optimiser adds the term's gradient,
    mu * (w - w_round), to each parameter's own: after whatever clipped that. A loss that you report is without the
    term. Under a GradScaler with a fused optimiser, call its `unscale_` before each step.

    Raises UsageError for a mu that is negative or no number; a step does so where it is given a closure, which
    would compute the gradients again after the hook.
    """
    if not 0 <= mu < math.inf:
        raise UsageError(f"cairn.prox: mu is {mu!r}, expected a number that is not negative")
    starts = [
        (parameter, parameter.detach().clone())
        for group in optimizer.param_groups
        for parameter in group["params"]
        if parameter.requires_grad
    ]

    def add_term(stepping: "Optimizer", args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        refuse_closure("cairn.prox", stepping, args, kwargs)
        for parameter, start in starts:
            distance = parameter.detach() - start
            if parameter.grad is None:  # of a loss that does not depend on it
                parameter.grad = distance.mul_(mu)
            else:
                parameter.grad.add_(distance, alpha=mu)

    optimizer.register_step_pre_hook(add_term)


def refuse_closure(
    caller: str, stepping: "Optimizer", args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> None:
    """Raise UsageError where a step, of which a hook is told the arguments, was given a closure."""
    if any(callable(given) for given in (*args, *kwargs.values()) if given is not stepping):
        raise UsageError(
            f"{caller} works with optimizer.step() after loss.backward(), and not with a closure, as LBFGS needs one"
        )
