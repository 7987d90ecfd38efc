"""What becomes of the accepted updates: the rules and optimizers, their numbers, and the privacy floor of each. Pure.

The code of a rule is the aggregator's (aggregator_node/aggregation), and its formula stands there. What it is called, which
numbers it has and over how many owners it averages is here, for every party to check.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction

from cairn.errors import InvalidMessage
from cairn.protocol.limits import MAX_COHORT, MIN_COHORT
from cairn.protocol.words import known, word_of
from cairn.v1 import round_pb2 as pb


@dataclass(frozen=True)
class Number:
    """A number of a rule or an optimizer: its range, and what it is where a job's file does not say; None: it must."""

    low: float
    high: float
    default: float | None = None
    whole: bool = False

    def check(self, value: float) -> None:
        """Raise ValueError, whose text goes on after "NAME = VALUE", where it is outside the range."""
        if not self.low <= value <= self.high:
            raise ValueError(f"must be {self.low:g} to {self.high:g}")
        if self.whole and value != int(value):
            raise ValueError("must be a whole number")


_NORM = Number(1e-12, 1e30)
_LR = Number(1e-12, 1e6)
_BETAS = {"beta1": Number(0, 0.999999, 0.9), "beta2": Number(0, 0.999999, 0.99)}
_EPSILON = Number(1e-12, 1, 1e-3)

NUMBERS: dict["pb.Rule", dict[str, Number]] = {
    pb.RULE_MEAN: {},
    pb.RULE_SUM: {},
    pb.RULE_NORM_BOUNDED_MEAN: {"norm": _NORM},
    pb.RULE_TRIMMED_MEAN: {"trim": Number(0, 0.49)},
    pb.RULE_BUCKETED_MEDIAN: {"bucket": Number(MIN_COHORT, MAX_COHORT, whole=True)},
    pb.RULE_MULTI_KRUM: {
        "byzantine": Number(0, MAX_COHORT, whole=True),
        "select": Number(MIN_COHORT, MAX_COHORT, whole=True),
    },
    pb.RULE_GEOMETRIC_MEDIAN: {
        "iterations": Number(1, 100, 40, whole=True),
        "smoothing": Number(1e-12, 1e6, 1e-6),
    },
    pb.RULE_CENTRED_CLIPPING: {"norm": _NORM, "iterations": Number(1, 100, 1, whole=True)},
    pb.RULE_PRIVATE_MEAN: {
        "norm": _NORM,
        "noise": Number(0.01, 1e4),
        "epsilon": Number(1e-3, 1e3),
        "delta": Number(1e-12, 1e-2),
    },
}
OPTIMIZER_NUMBERS: dict["pb.Optimizer", dict[str, Number]] = {
    pb.OPTIMIZER_NONE: {},
    pb.OPTIMIZER_SGD: {"lr": _LR, "momentum": Number(0, 0.999999, 0)},
    pb.OPTIMIZER_ADAGRAD: {"lr": _LR, "epsilon": _EPSILON},
    pb.OPTIMIZER_ADAM: {"lr": _LR, **_BETAS, "epsilon": _EPSILON},
    pb.OPTIMIZER_YOGI: {"lr": _LR, **_BETAS, "epsilon": _EPSILON},
}
# What a file allows that does not list its rules. A trimmed mean leaves out other owners from element to element, so that
# elements which depend on one another can tell single owners (docs/security/rules.md).
RULES_UNLESS_SAID = frozenset(NUMBERS) - {pb.RULE_TRIMMED_MEAN}
# Rules that weigh the updates themselves, or not at all.
_EQUAL_ONLY = frozenset(NUMBERS) - {pb.RULE_MEAN, pb.RULE_NORM_BOUNDED_MEAN}
# An update counts as its weight says, whatever is in it and in the others.
_BLIND = frozenset({pb.RULE_MEAN, pb.RULE_SUM})
_OF_STATISTICS = (pb.RULE_SUM, pb.OPTIMIZER_NONE)
_CENTRED_AT_BASE = frozenset(
    {pb.RULE_NORM_BOUNDED_MEAN, pb.RULE_CENTRED_CLIPPING, pb.RULE_PRIVATE_MEAN}
)


@dataclass(frozen=True)
class Aggregation:
    """What the updates are, and what becomes of them; the fields are those of the message of the same name."""

    content: "pb.Content" = pb.CONTENT_WEIGHTS
    rule: "pb.Rule" = pb.RULE_MEAN
    rule_numbers: Mapping[str, float] = field(default_factory=dict)
    optimizer: "pb.Optimizer" = pb.OPTIMIZER_NONE
    optimizer_numbers: Mapping[str, float] = field(default_factory=dict)

    @property
    def are_gradients(self) -> bool:
        """Whether the updates are gradients."""
        return self.content == pb.CONTENT_GRADIENTS

    @property
    def are_statistics(self) -> bool:
        """Whether the updates are counts of the owners' data."""
        return self.content == pb.CONTENT_STATISTICS

    @property
    def needs_base(self) -> bool:
        """Whether the aggregator needs the model that a round starts from, whole updates or not."""
        return self.optimizer != pb.OPTIMIZER_NONE or self.rule in _CENTRED_AT_BASE

    @property
    def looks_at_values(self) -> bool:
        """Whether what an update counts for depends on values, its own or the others', or on a draw."""
        return self.rule not in _BLIND

    @property
    def is_private(self) -> bool:
        """Whether noise hides every single owner in a release; then nothing leaves that has no noise, such as metrics."""
        return self.rule == pb.RULE_PRIVATE_MEAN

    @property
    def draws(self) -> bool:
        """Whether the rule divides the updates by a draw."""
        return self.rule == pb.RULE_BUCKETED_MEDIAN

    def whole_number(self, name: str) -> int:
        """One of the rule's numbers that are whole."""
        return int(self.rule_numbers[name])

    def averages_over(self, contributors: int, floor: int) -> int:
        """Over how many of so many contributors each released element is an average at least, by the rule alone.

        0 where the rule has no result of so few. `floor` is the round's, by which some rules bound a weight.
        """
        return _AVERAGES_OVER.get(self.rule, _all)(self, contributors, floor)

    def contributors_needed(self, most: int, floor: int) -> int:
        """The fewest of at most so many contributors from which on any number of them averages over the floor.

        Above `most` where even all of them do not.
        """
        fewest = most + 1
        while fewest > floor and self.averages_over(fewest - 1, floor) >= floor:
            fewest -= 1
        return fewest

    def __str__(self) -> str:
        words = [_in_words(word_of(pb.Rule, self.rule), self.rule_numbers)]
        if self.optimizer != pb.OPTIMIZER_NONE:
            words.append(_in_words(word_of(pb.Optimizer, self.optimizer), self.optimizer_numbers))
        is_model = self.content == pb.CONTENT_WEIGHTS
        return ", ".join(words if is_model else [word_of(pb.Content, self.content), *words])


def _in_words(name: str, numbers: Mapping[str, float]) -> str:
    said = ", ".join(f"{key} = {value:g}" for key, value in sorted(numbers.items()))
    return f"{name} ({said})" if said else name


def numbers_of(
    numbers: Mapping[str, Number], given: Mapping[str, float], what: str
) -> dict[str, float]:
    """All numbers of a rule or an optimizer, called `what`, of which some are given and the others have a default.

    Raises ValueError with a sentence that names the number.
    """
    if unknown := sorted(set(given) - set(numbers)):
        names = ", ".join(sorted(numbers)) or "no number"
        raise ValueError(f"{what} has {names}, and not {', '.join(unknown)}")
    values = dict[str, float]()
    for name, number in numbers.items():
        value = given.get(name, number.default)
        if value is None:
            raise ValueError(f"{what} needs {name}, from {number.low:g} to {number.high:g}")
        try:
            number.check(value)
        except ValueError as error:
            raise ValueError(f"{what}: {name} = {value:g} {error}") from None
        values[name] = float(value)
    return values


def check_aggregation(
    aggregation: Aggregation,
    weighting: "pb.Weighting",
    encoding: "pb.Encoding",
    *,
    all_floats: bool,
) -> None:
    """Raise ValueError with a sentence where the parts of a job do not go together.

    `all_floats` says whether the model has floating-point tensors alone.
    """
    rule = word_of(pb.Rule, aggregation.rule)
    if weighting != pb.WEIGHTING_EQUAL and aggregation.rule in _EQUAL_ONLY:
        raise ValueError(f'the rule {rule} wants weighting = "equal"')
    if aggregation.are_statistics:
        whole = encoding == pb.ENCODING_WHOLE
        if (aggregation.rule, aggregation.optimizer) != _OF_STATISTICS or not whole:
            raise ValueError(
                "statistics are added up: their rule is sum, without an optimizer, and they travel whole"
            )
        return
    if aggregation.is_private and not all_floats:
        raise ValueError(
            f"the rule {rule} hides floating-point tensors alone: keep the model's integers and bools with"
            " the owners, by Task(keeps=...)"
        )
    if not aggregation.are_gradients:
        if aggregation.rule == pb.RULE_SUM:
            raise ValueError(
                "the rule sum adds gradients up; a sum of weights is no model: take the mean"
            )
        return
    if aggregation.optimizer == pb.OPTIMIZER_NONE:
        raise ValueError("gradients need an optimizer, for example sgd, to step along them")
    if encoding != pb.ENCODING_WHOLE:
        raise ValueError('gradients are no deltas from the base: set updates = "whole"')
    if not all_floats:
        raise ValueError(
            "a model whose gradients are averaged has floating-point tensors alone: exchange its parameters,"
            " and no other entries"
        )


def aggregation_to_pb(aggregation: Aggregation) -> pb.Aggregation:
    return pb.Aggregation(**vars(aggregation))


def aggregation_from_pb(message: pb.Aggregation) -> Aggregation:
    """Raises InvalidMessage for a value that is unspecified, unknown, missing or out of its range."""
    known(pb.Content, message.content, "content")
    known(pb.Rule, message.rule, "rule")
    known(pb.Optimizer, message.optimizer, "optimizer")
    return Aggregation(
        content=message.content,
        rule=message.rule,
        rule_numbers=_all_given(NUMBERS[message.rule], message.rule_numbers, "the rule"),
        optimizer=message.optimizer,
        optimizer_numbers=_all_given(
            OPTIMIZER_NUMBERS[message.optimizer], message.optimizer_numbers, "the optimizer"
        ),
    )


def _all_given(
    numbers: Mapping[str, Number], given: Mapping[str, float], what: str
) -> dict[str, float]:
    if missing := sorted(set(numbers) - set(given)):
        raise InvalidMessage(f"{what} is without its {', '.join(missing)}")
    try:
        return numbers_of(numbers, given, what)
    except ValueError as error:
        raise InvalidMessage(str(error)) from None


def trimmed(trim: float, contributors: int) -> int:
    """How many updates a trimmed mean leaves out at each end: the share as a person reads it, 0.29 of 100 is 29."""
    return int(Fraction(repr(trim)) * contributors)


def bucket_count(bucket: int, contributors: int) -> int:
    """Into how many buckets of at least so many the updates of a round are divided."""
    return contributors // bucket


def _all(_: Aggregation, contributors: int, __: int) -> int:
    return contributors


def _of_trimmed_mean(aggregation: Aggregation, contributors: int, _: int) -> int:
    return contributors - 2 * trimmed(aggregation.rule_numbers["trim"], contributors)


def _of_bucketed_median(aggregation: Aggregation, contributors: int, _: int) -> int:
    """The median of two means is the mean of both, in every element.

    Of four or more it is the mean of other two from element to element, so that elements that say the same could be
    taken apart into the means of single buckets; with an odd number it is one of them.
    """
    count = bucket_count(aggregation.whole_number("bucket"), contributors)
    if not count:
        return 0
    return contributors if count in {1, 2} else contributors // count


def _of_multi_krum(aggregation: Aggregation, contributors: int, _: int) -> int:
    selected, byzantine = (
        aggregation.whole_number("select"),
        aggregation.whole_number("byzantine"),
    )
    enough = contributors >= max(2 * byzantine + 3, selected)
    return selected if enough else 0


def _of_bounded_weights(_: Aggregation, contributors: int, floor: int) -> int:
    """No weight is above one part in the floor."""
    return min(contributors, floor)


_AVERAGES_OVER: dict["pb.Rule", Callable[[Aggregation, int, int], int]] = {
    pb.RULE_TRIMMED_MEAN: _of_trimmed_mean,
    pb.RULE_BUCKETED_MEDIAN: _of_bucketed_median,
    pb.RULE_MULTI_KRUM: _of_multi_krum,
    pb.RULE_GEOMETRIC_MEDIAN: _of_bounded_weights,
    pb.RULE_CENTRED_CLIPPING: _of_bounded_weights,
}
