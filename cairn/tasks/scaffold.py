"""SCAFFOLD (Karimireddy et al. 2020, arXiv 1910.06378): corrects local training for what makes an owner differ.

Algorithm 1 of the paper with option II and a global step size of 1. The control variates are buffers of the
model, so that they travel and last as any other tensor of it does:

    scaffold_c/<parameter>        c, of all owners: exchanged and averaged
    scaffold_c_own/<parameter>    c_i, of this owner: kept

An owner's update has c + (c_i+ - c_i) in place of c, so that the mean of the updates is c and the mean of the
changes. Imports no torch by itself.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from cairn.errors import UsageError
from cairn.tasks.fedprox import refuse_closure
from cairn.tasks.patterns import Rule, chosen

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.optim import Optimizer

    from cairn.tasks.partial import StateSplit

    Model = TypeVar("Model", bound=nn.Module)

_ALL, _OWN = "scaffold_c/", "scaffold_c_own/"


def control_variates(model: "Model", parameters: Sequence[str] = ("*",)) -> "Model":
    """Give the model control variates, which are zero at first, and return it. Call it in `model()`.

        def model():
            return cairn.control_variates(Net())

        task = cairn.Task(..., keeps=("scaffold_c_own/*",))

    `parameters` names those that are corrected, by the patterns of `Task.exchanges`: all that require a gradient. They
    must be exchanged, because the variate of one that stays would tell of it. Raises UsageError for a pattern that
    matches nothing.
    """
    trained = {name: value for name, value in model.named_parameters() if value.requires_grad}
    rule = Rule("control_variates", "is corrected", 'such as control_variates(model, ("layer.*",))')
    for name in sorted(chosen(trained.keys(), parameters, rule)):
        for prefix in (_ALL, _OWN):
            zeros = trained[name].detach().clone().zero_()
            model.register_buffer(_variate(prefix, name), zeros)
    return model


def scaffold(optimizer: "Optimizer", model: "nn.Module") -> None:
    """Train with the model's control variates, and leave the new ones in it.

        optimizer = optim.SGD(model.parameters(), lr=0.1)
        cairn.scaffold(optimizer, model)

    Call it once, before the first step of a round. Hooks of the optimiser add c - c_i to each gradient before a step, and
    set the variates after it: c_i+ = c_i - c + (x - y) / (K * lr), with x the round's weights, y the present ones, and
    the sum of the learning rates of the K steps so far for K * lr. Parameters without variates are trained as ever.

    The result is the paper's where each round counts every owner with the same weight. Where some are missing, c moves to
    the mean of those that were counted, and in the paper only their part of the way.

    Raises UsageError for an optimiser that is not SGD, or has momentum or maximises, for which the formula does not
    hold; where nothing that it trains has variates; and in a step, for a closure.
    """
    controlled = _controlled(optimizer, model)

    def correct(stepping: "Optimizer", args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        refuse_closure("cairn.scaffold", stepping, args, kwargs)
        for each in controlled:
            each.correct()

    def advance(*_: object) -> None:
        for each in controlled:
            each.advance()

    optimizer.register_step_pre_hook(correct)
    optimizer.register_step_post_hook(advance)


def check_variates(split: "StateSplit") -> None:
    """Refuse control variates that would not last, or would tell of a parameter that stays. Raises UsageError."""
    for name in split.shared | split.private | split.kept:
        if name.startswith(_OWN) and name not in split.kept:
            raise UsageError(
                f"the model's {name} is a control variate of this owner, which the task must keep: add"
                f' keeps=("{_OWN}*",)'
            )
        if name.startswith(_ALL) and name not in split.shared:
            raise UsageError(
                f"the model's {name} is a control variate of all owners, which the task must exchange: add"
                f' "{_ALL}*" to its exchanges'
            )
        parameter = name.removeprefix(_ALL).replace("/", ".")
        if name.startswith(_ALL) and parameter not in split.shared:
            raise UsageError(
                f"the model's {parameter} stays at this site, and its control variate {name} would tell of it: name"
                ' those that travel, as in cairn.control_variates(model, ("*", "!head.*"))'
            )


@dataclass
class _Controlled:
    """A parameter, its group of the optimiser, and its variates; `lr_total` is over the steps so far."""

    parameter: "Tensor"
    group: Mapping[str, Any]
    everyones: "Tensor"  # c
    own: "Tensor"  # c_i
    start: "Tensor"
    correction: "Tensor"  # c - c_i, as they were at the start
    lr_total: float = 0.0

    def correct(self) -> None:
        self.lr_total += float(self.group["lr"])
        if self.parameter.grad is None:  # of a loss that does not depend on it
            self.parameter.grad = self.correction.clone()
        else:
            self.parameter.grad.add_(self.correction)

    def advance(self) -> None:
        if self.lr_total:
            # c + (c_i+ - c_i), with c_i+ = c_i - c + (x - y) / (K * lr), is the last term alone.
            self.everyones.copy_((self.start - self.parameter.detach()) / self.lr_total)
            self.own.copy_(self.everyones - self.correction)


def _controlled(optimizer: "Optimizer", model: "nn.Module") -> list[_Controlled]:
    from torch.optim import SGD

    buffers, names = dict(model.named_buffers()), {p: name for name, p in model.named_parameters()}
    found = []
    for group in optimizer.param_groups:
        if not isinstance(optimizer, SGD) or group["momentum"] or group["maximize"]:
            raise UsageError(
                "cairn.scaffold: the control variates of the paper are those of plain SGD; use torch.optim.SGD without"
                " momentum and maximize"
            )
        for parameter in group["params"]:
            name = names.get(parameter)
            if name is None or _variate(_ALL, name) not in buffers:
                continue
            everyones, own = (buffers[_variate(prefix, name)] for prefix in (_ALL, _OWN))
            start = parameter.detach().clone()
            found.append(_Controlled(parameter, group, everyones, own, start, everyones - own))
    if not found:
        raise UsageError(
            "cairn.scaffold: nothing that the optimiser trains has control variates; in model(), return"
            " cairn.control_variates(...)"
        )
    return found


def _variate(prefix: str, parameter: str) -> str:
    """The name of a parameter's variate: that of a buffer has no dot."""
    return prefix + parameter.replace(".", "/")
