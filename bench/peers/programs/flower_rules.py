"""Runs in Flower's environment: what its own strategies make of given updates, as a server's application calls them.

    flower_rules.py INPUTS RESULT

INPUTS and RESULT are archives of NumPy (`bench/peers/rules.py` says what is in the first). A model has two tensors, so that
distances and norms have to be those of the whole. RESULT has an array for each strategy and type of the updates: the model
that becomes of them, and for an optimizer those of all rounds.
"""

# mypy: disable-error-code="import-not-found, misc"
# Flower is in an environment of its own, so here its classes have no types.

import json
import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from flwr.serverapp.strategy import (
    DifferentialPrivacyServerSideFixedClipping,
    FedAdagrad,
    FedAdam,
    FedAvg,
    FedAvgM,
    FedMedian,
    FedTrimmedAvg,
    FedYogi,
    Krum,
    MultiKrum,
)

_FIRST_TENSOR = 30  # elements; the second has the others
_NO_SAMPLING = {"fraction_train": 0.0}  # nobody is sent anything, so that a round needs no network


def _model(values: Any) -> Any:
    parts = {"a": values[:_FIRST_TENSOR], "b": values[_FIRST_TENSOR:]}
    return ArrayRecord({name: Array(np.ascontiguousarray(part)) for name, part in parts.items()})


@dataclass
class _Reply:
    """What strategies read of a message; Flower's own cannot be made outside of a running federation."""

    content: Any

    def has_error(self) -> bool:
        return False


def _replies(updates: Any, examples: Any) -> list[_Reply]:
    replies = []
    for update, weight in zip(updates, examples, strict=True):
        metrics = MetricRecord({"num-examples": int(weight)})
        replies.append(_Reply(RecordDict({"arrays": _model(update), "metrics": metrics})))
    return replies


def _round(strategy: Any, base: Any, updates: Any, examples: Any = None, number: int = 1) -> Any:
    """The model after one round of the strategy from the base."""
    strategy.configure_train(number, _model(base), ConfigRecord(), None)
    each = np.ones(len(updates)) if examples is None else examples
    arrays, _ = strategy.aggregate_train(number, _replies(updates, each))
    return np.concatenate([array.numpy() for array in arrays.values()])


def _steps(strategy: Any, base: Any, results: Any, first: int = 1) -> Any:
    """The models of rounds that average to these, where the first round has this number.

    A round begins with what the last one gave, in the type of the first: what FedAdam gives is always binary64.
    """
    models = []
    for number, result in enumerate(results, start=first):
        models.append(_round(strategy, base, [result], number=number))
        base = models[-1].astype(base.dtype)
    return np.array(models)


def _bucketed_median(base: Any, updates: Any, bucket: int) -> Any:
    """The median of the means of consecutive updates, as many in each."""
    means = [
        _round(FedAvg(**_NO_SAMPLING), base, updates[begin : begin + bucket])
        for begin in range(0, len(updates), bucket)
    ]
    return _round(FedMedian(**_NO_SAMPLING), base, np.array(means))


def _multi_krum(base: Any, updates: Any, numbers: Any) -> Any:
    byzantine, select = numbers["byzantine"], numbers["select"]
    rule = MultiKrum(num_malicious_nodes=byzantine, num_nodes_to_select=select, **_NO_SAMPLING)
    return _round(rule, base, updates)


def _rules(base: Any, updates: Any, examples: Any, numbers: Any) -> dict[str, Any]:
    mean = FedAvg(**_NO_SAMPLING)
    bounded = DifferentialPrivacyServerSideFixedClipping(mean, 0.0, numbers["norm"], len(updates))
    trimmed = FedTrimmedAvg(beta=numbers["trim"], **_NO_SAMPLING)
    krum = Krum(num_malicious_nodes=numbers["byzantine"], **_NO_SAMPLING)
    return {
        "mean": _round(mean, base, updates),
        "weighted mean": _round(mean, base, updates, examples),
        "norm-bounded mean": _round(bounded, base, updates),
        "trimmed mean": _round(trimmed, base, updates),
        "krum": _round(krum, base, updates),
        "multi-krum": _multi_krum(base, updates, numbers),
        **{f"median of {n}s": _bucketed_median(base, updates, n) for n in numbers["buckets"]},
    }


def _optimizers(base: Any, results: Any, numbers: Any) -> dict[str, Any]:
    sgd = FedAvgM(
        server_learning_rate=numbers["sgd"]["lr"],
        server_momentum=numbers["sgd"]["momentum"],
        **_NO_SAMPLING,
    )
    adam = _renamed(numbers["adam"])
    return {
        "sgd": _steps(sgd, base, results),
        "adagrad": _steps(FedAdagrad(**_renamed(numbers["adagrad"])), base, results),
        "adam": _steps(FedAdam(**adam), base, results),
        "adam from round 0": _steps(FedAdam(**adam), base, results, first=0),
        "yogi": _steps(FedYogi(**_renamed(numbers["yogi"])), base, results),
    }


def _renamed(numbers: Any) -> dict[str, Any]:
    """An optimizer's numbers by Flower's names."""
    names = {"lr": "eta", "beta1": "beta_1", "beta2": "beta_2", "epsilon": "tau"}
    return _NO_SAMPLING | {names[name]: value for name, value in numbers.items()}


def main() -> None:
    inputs, result = sys.argv[1:]
    given = np.load(inputs)
    numbers = json.loads(str(given["numbers"]))
    made: dict[str, Any] = {}
    for dtype in numbers["dtypes"]:
        base = given[f"base {dtype}"]
        results = _rules(base, given[f"updates {dtype}"], given["examples"], numbers)
        made |= {f"{name} {dtype}": values for name, values in results.items()}
        if f"results {dtype}" in given:
            models = _optimizers(base, given[f"results {dtype}"], numbers)
            made |= {f"{name} {dtype}": values for name, values in models.items()}
    near = given["near F32"]
    made["multi-krum of near F32"] = _multi_krum(near[0], near, numbers)
    np.savez(result, **made)


if __name__ == "__main__":
    main()
