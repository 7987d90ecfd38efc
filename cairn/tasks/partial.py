"""Which entries of a model's state_dict are shared, and which are private to the site: `Task.exchanges` says it."""

import fnmatch
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Any

import torch
from torch import Tensor, nn

from cairn.errors import UsageError


@dataclass(frozen=True)
class StateSplit:
    """The entries of a state_dict: the shared ones leave the site, the private ones never do, whatever they are."""

    shared: dict[str, Any]
    private: dict[str, Any]


def split_state(state: Mapping[str, Any], exchanges: Sequence[str] | None) -> StateSplit:
    """Split a state_dict. Raises UsageError for a pattern that matches nothing or splits tied weights."""
    if exchanges is None:
        return StateSplit(dict(state), {})
    names = _chosen(state.keys(), exchanges)
    split = StateSplit(
        {name: value for name, value in state.items() if name in names},
        {name: value for name, value in state.items() if name not in names},
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


def _chosen(names: Collection[str], exchanges: Sequence[str]) -> set[str]:
    """The names that match a pattern, less those that match a pattern after "!"."""
    if not isinstance(exchanges, list | tuple) or not all(isinstance(p, str) for p in exchanges):
        raise UsageError(
            f"the task's exchanges is {exchanges!r}, expected a tuple of names or patterns, such as"
            ' exchanges=("head.*",)'
        )
    chosen, left_out = set[str](), set[str]()
    for pattern in exchanges:
        without = pattern.startswith("!")
        (left_out if without else chosen).update(_matching(names, pattern.removeprefix("!")))
    if not chosen - left_out:
        raise UsageError(
            f"the task's exchanges is {exchanges!r}, by which no tensor travels; name those that do,"
            ' or all but some: exchanges=("*", "!norm.*")'
        )
    return chosen - left_out


def _matching(names: Collection[str], pattern: str) -> list[str]:
    matches = re.compile(fnmatch.translate(pattern)).match
    matching = [name for name in names if matches(name)]
    if not matching:
        closest = get_close_matches(pattern, names, cutoff=0)
        raise UsageError(
            f"the task's exchanges has {pattern!r}, which matches no entry of the model's state_dict;"
            f" the closest {'is' if len(closest) == 1 else 'are'} {', '.join(closest)}"
        )
    return matching


def _check_apart(split: StateSplit) -> None:
    """Refuse tied weights of which one name is shared: the values of the other would leave with it."""
    spans = sorted(
        (*span, name)
        for name, value in (*split.shared.items(), *split.private.items())
        if (span := _span(value))
    )
    # The tensor that reaches farthest, of the shared ones and of the private ones.
    farthest = {True: (0, ""), False: (0, "")}
    for begin, end, name in spans:
        is_shared = name in split.shared
        reach, other = farthest[not is_shared]
        if begin < reach:
            shared, private = (name, other) if is_shared else (other, name)
            raise UsageError(
                f"the model's {private} stays by the task's exchanges, but it shares its memory with"
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
