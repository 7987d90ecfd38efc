"""Which choices of a job are allowed and do not do what their names promise, in a sentence each. Pure.

That is a rule that is the plain mean with so many owners, and a norm or an optimizer that takes running statistics for weights.
"""

from collections.abc import Collection, Iterator
from math import ceil

from cairn.model.schema import Schema
from cairn.protocol.aggregation import Aggregation, bucket_count, trimmed
from cairn.protocol.words import word_of
from cairn.v1 import round_pb2 as pb

_RUNNING = (".running_mean", ".running_var")  # PyTorch's names, in every norm that has them
_FEWEST_BUCKETS = 3  # whose median is not the mean of all
_MEASURING = frozenset(
    {
        pb.RULE_NORM_BOUNDED_MEAN,
        pb.RULE_MULTI_KRUM,
        pb.RULE_GEOMETRIC_MEDIAN,
        pb.RULE_CENTRED_CLIPPING,
    }
)


def doubts(
    aggregation: Aggregation, schema: Schema, sizes: Collection[int], floor: int
) -> Iterator[str]:
    """The sentences for a job whose rounds have cohorts of these sizes, if all attend."""
    said = _of_the_rule(aggregation, max(sizes), floor)
    if said:
        yield f"rule {word_of(pb.Rule, aggregation.rule)}: {said}"
    names = [tensor.name for tensor in schema.tensors if tensor.name.endswith(_RUNNING)]
    if names and (by := _taken_for_weights(aggregation)):
        others = f" and {len(names) - 1} more" if len(names) > 1 else ""
        yield (
            f"{by} takes {names[0]}{others} for weights, and the evaluated model may be useless: have the"
            ' owners keep running statistics, cairn.Task(keeps=("*.running_*", "*.num_batches_tracked")), or use a norm'
            " without them, such as GroupNorm"
        )


def _of_the_rule(aggregation: Aggregation, owners: int, floor: int) -> str | None:
    match aggregation.rule:
        case pb.RULE_TRIMMED_MEAN:
            trim = aggregation.rule_numbers["trim"]
            if not trimmed(trim, owners):
                least = ceil(100 / owners) / 100
                return (
                    f"trim = {trim:g} of {owners} owners leaves out nobody: write {least:g} or more"
                )
        case pb.RULE_BUCKETED_MEDIAN:
            bucket = aggregation.whole_number("bucket")
            if (count := bucket_count(bucket, owners)) < _FEWEST_BUCKETS:
                buckets = "one bucket" if count == 1 else f"{count} buckets"
                return (
                    f"bucket = {bucket} makes {buckets} of {owners} owners, whose median is the mean of all: three need"
                    f" {_FEWEST_BUCKETS * bucket} owners"
                )
        case pb.RULE_MULTI_KRUM:
            return _of_multi_krum(aggregation, owners)
        case pb.RULE_GEOMETRIC_MEDIAN:
            if owners <= floor:
                return f"of {owners} owners with a floor of {floor} all count the same, as in the mean: take more owners"
    return None


def _of_multi_krum(aggregation: Aggregation, owners: int) -> str | None:
    selected, byzantine = (aggregation.whole_number(name) for name in ("select", "byzantine"))
    if selected >= owners:
        return f"select = {selected} of {owners} owners leaves out nobody: select fewer"
    if selected > owners - byzantine:
        return (
            f"select = {selected} of {owners} owners takes some of byzantine = {byzantine} false updates as well: select"
            f" {owners - byzantine} or fewer"
        )
    return None


def _taken_for_weights(aggregation: Aggregation) -> str | None:
    """What of a job does more to an element of the model than to average it."""
    numbers = aggregation.optimizer_numbers
    if aggregation.optimizer == pb.OPTIMIZER_SGD:
        steps = numbers != {"lr": 1.0, "momentum": 0.0}
    else:
        steps = aggregation.optimizer != pb.OPTIMIZER_NONE
    if steps:
        return f"optimizer {word_of(pb.Optimizer, aggregation.optimizer)}"
    if aggregation.rule in _MEASURING:
        return f"rule {word_of(pb.Rule, aggregation.rule)}"
    return None
