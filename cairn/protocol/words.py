"""The words for the values of the wire's enums, as ledgers, files, logs and sentences have them. Pure."""

from typing import Any, cast

from cairn.errors import InvalidMessage
from cairn.v1 import round_pb2 as pb


def word_of(enum: Any, value: int) -> str:
    """The word for a value, for example int8_deltas. Raises ValueError for one that this version does not know."""
    return _name(enum, value).lower()


def known(enum: Any, value: int, field: str) -> str:
    """The name of an enum value; raises InvalidMessage for the unspecified and for an unknown one."""
    if value == 0 or value not in enum.values():
        raise InvalidMessage(f"{field} has the value {value}, which this version does not know")
    name: str = enum.Name(value)
    return name


def reason_word(reason: int) -> str:
    """The word for a reason, for example LEASE_EXPIRED. Raises ValueError as `word_of` does."""
    return _name(pb.Reason, reason)


def reason_of_word(word: str) -> "pb.Reason":
    """The reason of `reason_word`'s word; unspecified for a word that this version does not know."""
    return _REASONS.get(word, pb.REASON_UNSPECIFIED)


def _name(enum: Any, value: int) -> str:
    """A value's name without that of its enum."""
    name: str = enum.Name(value)
    return name.removeprefix(f"{enum.DESCRIPTOR.name.upper()}_")


def _values(enum: Any) -> dict[str, Any]:
    """The values of an enum but for the unspecified, by their words, in the contract's order."""
    return {word_of(enum, value): value for value in enum.values() if value}


PHASES: dict[str, "pb.Phase"] = _values(pb.Phase)
ENCODINGS: dict[str, "pb.Encoding"] = _values(pb.Encoding)
WEIGHTINGS: dict[str, "pb.Weighting"] = _values(pb.Weighting)
CONTENTS: dict[str, "pb.Content"] = _values(pb.Content)
RULES: dict[str, "pb.Rule"] = _values(pb.Rule)
OPTIMIZERS: dict[str, "pb.Optimizer"] = _values(pb.Optimizer)
_REASONS = {reason_word(value): cast("pb.Reason", value) for value in pb.Reason.values()}
