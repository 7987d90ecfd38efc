"""Which entries of a model's state_dict are shared, kept or private to the site: `Task.exchanges` and `Task.keeps` say it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from cairn.errors import UsageError
from cairn.tasks.loader import task_code
from cairn.tasks.patterns import Rule, chosen
from cairn.tasks.scaffold import check_variates
from cairn.tasks.task import Task


@dataclass(frozen=True)
class StateSplit:
    """The entries of a state_dict: the shared ones leave the site, and no others do.

    The kept ones last from round to round; the private ones, which may be anything, end with their round.
    """

    shared: dict[str, Any]
    private: dict[str, Any]
    kept: dict[str, Any]


_EXCHANGES = Rule(
    "exchanges", "travels", 'name those that do, or all but some: exchanges=("*", "!norm.*")'
)
_KEEPS = Rule(
    "keeps", "is kept", 'name those that are, such as keeps=("*.norm.*",), or leave keeps out'
)


def split_of(task: Task, model: nn.Module) -> StateSplit:
    """Split the state_dict of a task's model. Raises TaskFailed where the model's code raises, UsageError as `split_state`
    does, and for control variates that are not where they belong.
    """
    with task_code("model's state_dict"):
        state = model.state_dict()
    split = split_state(state, task.exchanges, task.keeps)
    check_variates(split)
    return split


def split_state(
    state: Mapping[str, Any],
    exchanges: Sequence[str] | None,
    keeps: Sequence[str] | None = None,
) -> StateSplit:
    """Split a state_dict; what is kept is not shared. Raises UsageError for a pattern that matches nothing, one that
    splits tied weights, and where nothing is left to share.
    """
    kept = set() if keeps is None else chosen(state.keys(), keeps, _KEEPS)
    shared = {*state} if exchanges is None else chosen(state.keys(), exchanges, _EXCHANGES)
    shared -= kept
    if kept and not shared:
        raise UsageError(
            "the task's keeps names every tensor that the task exchanges, so that none travels; keep fewer"
        )
    split = StateSplit(
        {name: value for name, value in state.items() if name in shared},
        {name: value for name, value in state.items() if name not in shared | kept},
        {name: value for name, value in state.items() if name in kept},
    )
    _check_apart(split)
    return split


def trained_part(split: StateSplit, model: nn.Module) -> StateSplit:
    """Of the shared entries leave the parameters that need a gradient, under each name of a tied one; the others are private.

    Raises UsageError where there is none, and where two parameters are one memory: each has its own gradient, and the
    memory would need their sum.
    """
    parameters = {
        name: parameter
        for name, parameter in model.named_parameters(remove_duplicate=False)
        if name in split.shared and parameter.requires_grad
    }
    if not parameters:
        raise UsageError(
            "none of the tensors that the task exchanges is a parameter with requires_grad, so that there is no"
            " gradient to send"
        )
    spans = sorted((*span, name) for name, value in parameters.items() if (span := _span(value)))
    reach, farthest = 0, ""
    for begin, end, name in spans:
        if begin < reach and parameters[name] is not parameters[farthest]:
            raise UsageError(
                f"the model's {name} shares its memory with {farthest}, and each has a gradient of its own; tie"
                " them by one nn.Parameter"
            )
        reach, farthest = max((reach, farthest), (end, name))
    return replace(
        split,
        shared={name: value for name, value in split.shared.items() if name in parameters},
        private=split.private
        | {name: value for name, value in split.shared.items() if name not in parameters},
    )


def differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Name the plain tensors that have other values in the one than in the other."""
    return [
        name
        for name, value in one.items()
        if is_plain(value) and is_plain(other.get(name)) and not torch.equal(value, other[name])
    ]


def _check_apart(split: StateSplit) -> None:
    """Refuse tied weights of which one name is shared: the values of the other would leave with it."""
    entries = (*split.shared.items(), *split.private.items(), *split.kept.items())
    spans = sorted((*span, name) for name, value in entries if (span := _span(value)))
    # The tensor that reaches farthest, of the shared ones and of those that stay.
    farthest = {True: (0, ""), False: (0, "")}
    for begin, end, name in spans:
        is_shared = name in split.shared
        reach, other = farthest[not is_shared]
        if begin < reach:
            shared, stays = (name, other) if is_shared else (other, name)
            rule = _KEEPS if stays in split.kept else _EXCHANGES
            raise UsageError(
                f"the model's {stays} stays by the task's {rule.field}, but it shares its memory with"
                f" {shared}, which travels; exchange both or neither"
            )
        farthest[is_shared] = max(farthest[is_shared], (end, name))


def _span(value: Any) -> tuple[int, int] | None:
    """The addresses that a tensor has its values at; None where it has none or is of a kind of its own."""
    if not is_plain(value) or not value.numel():
        return None
    last = sum((size - 1) * step for size, step in zip(value.shape, value.stride(), strict=True))
    begin: int = value.data_ptr()
    return begin, begin + (last + 1) * value.element_size()


def is_plain(value: Any) -> bool:
    """Whether this is a dense tensor of PyTorch's own kinds, with values in memory of its own."""
    return (
        type(value) in {Tensor, nn.Parameter}
        and value.layout is torch.strided
        and not value.is_nested
        and not value.is_meta
    )
