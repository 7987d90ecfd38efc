"""Chooses tensors by name, with patterns as a shell has them, in which * stands for any text, dots too. Pure."""

import fnmatch
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from difflib import get_close_matches

from cairn.errors import UsageError


@dataclass(frozen=True)
class Rule:
    """What takes the patterns, what becomes of a tensor by it, and what to write instead; for sentences."""

    field: str
    deed: str
    example: str


def chosen(names: Collection[str], patterns: Sequence[str], rule: Rule) -> set[str]:
    """The names that match a pattern, less those that match a pattern after "!".

    Raises UsageError for patterns that are none, for one that matches nothing, and where nothing is chosen.
    """
    if not isinstance(patterns, list | tuple) or not all(isinstance(p, str) for p in patterns):
        raise UsageError(
            f"the task's {rule.field} is {patterns!r}, expected a tuple of names or patterns, such as"
            f' {rule.field}=("head.*",)'
        )
    taken, left_out = set[str](), set[str]()
    for pattern in patterns:
        without = pattern.startswith("!")
        matching = _matching(names, pattern.removeprefix("!"), rule)
        (left_out if without else taken).update(matching)
    if not taken - left_out:
        raise UsageError(
            f"the task's {rule.field} is {patterns!r}, by which no tensor {rule.deed}; {rule.example}"
        )
    return taken - left_out


def _matching(names: Collection[str], pattern: str, rule: Rule) -> list[str]:
    matches = re.compile(fnmatch.translate(pattern)).match
    matching = [name for name in names if matches(name)]
    if not matching:
        closest = get_close_matches(pattern, names, cutoff=0)
        raise UsageError(
            f"the task's {rule.field} has {pattern!r}, which matches no entry of the model's state_dict;"
            f" the closest {'is' if len(closest) == 1 else 'are'} {', '.join(closest)}"
        )
    return matching
