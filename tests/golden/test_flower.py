"""Rules and optimizers beside Flower's own, which are recorded in `flower.npz`: `make peers-check` records them anew.

Flower's strategies were given random updates of twelve owners, as `bench/peers/rules.py` says. They compute in the type of the
updates, ours exactly or in binary64 with one rounding at the end, so results may lie a few roundings of that type
apart. The tests say where else Flower's are others. What Flower does not have is not here: the sum, the geometric median,
centred clipping, and BF16, which is no type of NumPy's.
"""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from aggregator_node.aggregation.multi_krum import selected
from cairn.model.schema import DTYPES
from cairn.v1 import round_pb2 as pb
from tests.unit.aggregator_node.aggregation.rule_cases import combined, reading, released
from tests.unit.aggregator_node.aggregation.rule_cases import schema_of as rule_schema
from tests.unit.aggregator_node.aggregation.test_weighted_rules import distances_of, krum, vectors
from tests.unit.aggregator_node.optimizers.steps import Steps, aggregation_of, schema_of

FLOWER = dict(np.load(Path(__file__).with_name("flower.npz")))
NUMBERS: dict[str, Any] = json.loads(str(FLOWER["numbers"]))
KRUM = {"byzantine": NUMBERS["byzantine"], "select": NUMBERS["select"]}
ROUNDINGS = 16  # of a sum of twelve products, each as large as the largest value at the most
RULES: dict[str, tuple["pb.Rule", dict[str, float]]] = {
    "mean": (pb.RULE_MEAN, {}),
    "norm-bounded mean": (pb.RULE_NORM_BOUNDED_MEAN, {"norm": NUMBERS["norm"]}),
    "trimmed mean": (pb.RULE_TRIMMED_MEAN, {"trim": NUMBERS["trim"]}),
    "multi-krum": (pb.RULE_MULTI_KRUM, KRUM),
    **{f"median of {n}s": (pb.RULE_BUCKETED_MEDIAN, {"bucket": n}) for n in NUMBERS["buckets"]},
}
every_type = pytest.mark.parametrize("dtype", NUMBERS["dtypes"])


def assert_equal_to_rounding(ours: NDArray[Any], theirs: NDArray[Any], largest: float) -> None:
    """Equal but for roundings of a number as large as the largest that was computed with."""
    assert ours.dtype == theirs.dtype
    within = ROUNDINGS * float(np.finfo(ours.dtype).eps) / 2 * largest
    np.testing.assert_allclose(ours.astype(float), theirs.astype(float), rtol=0, atol=within)


@every_type
@pytest.mark.parametrize("name", RULES)
def test_a_rule_gives_what_flowers_gives(name: str, dtype: str) -> None:
    """Flower's norm-bounded mean is that of its central privacy without noise; its median was given means of buckets."""
    updates, (rule, numbers) = FLOWER[f"updates {dtype}"], RULES[name]
    ours = combined(rule, list(updates), numbers, FLOWER[f"base {dtype}"])
    assert_equal_to_rounding(ours, FLOWER[f"{name} {dtype}"], float(np.abs(updates).max()))


@every_type
def test_a_mean_by_examples_is_flowers(dtype: str) -> None:
    updates, examples = FLOWER[f"updates {dtype}"], FLOWER["examples"].tolist()
    schema = rule_schema(dtype, updates.shape[1])
    reads = [reading(schema, update.tobytes()) for update in updates]
    ours = np.frombuffer(released(pb.RULE_MEAN, schema, reads, weights=examples), DTYPES[dtype])
    theirs = FLOWER[f"weighted mean {dtype}"]
    assert_equal_to_rounding(ours, theirs, float(np.abs(updates).max()))


@every_type
def test_flowers_krum_releases_the_update_of_one_owner_which_is_the_first_that_ours_would_select(
    dtype: str,
) -> None:
    """A job cannot ask for it: every element would be that of one owner."""
    updates = FLOWER[f"updates {dtype}"]
    (chosen,) = selected(distances_of(vectors(updates)), KRUM["byzantine"], 1)
    assert FLOWER[f"krum {dtype}"].tolist() == updates[chosen].tolist()


def test_of_models_that_lie_near_one_another_flower_does_not_select_those_of_the_papers_formula() -> (
    None
):
    """It takes a distance for the difference of squared lengths, of which binary32 loses all digits; ours does not."""
    near = FLOWER["near F32"]
    chosen = krum(vectors(near), **KRUM)
    assert selected(distances_of(vectors(near)), **KRUM) == set(chosen)
    ours = combined(pb.RULE_MULTI_KRUM, list(near), KRUM)
    assert ours.tolist() == combined(pb.RULE_MEAN, [near[i] for i in chosen]).tolist()
    apart = np.abs(FLOWER["multi-krum of near F32"] - ours).max()
    assert apart > ROUNDINGS * np.spacing(np.abs(near).max())


def stepped(optimizer: "pb.Optimizer", theirs: str, dtype: str) -> NDArray[Any]:
    """The models that our optimizer steps to, each from the one that Flower's came to before."""
    base, results = FLOWER[f"base {dtype}"], FLOWER[f"results {dtype}"]
    before = [base, *FLOWER[f"{theirs} {dtype}"][:-1].astype(base.dtype)]
    schema, state, models = schema_of(len(base), dtype), None, []
    for made, (start, result) in enumerate(zip(before, results, strict=True), start=1):
        aggregation = aggregation_of(optimizer, are_gradients=False, **numbers_of(theirs, made))
        steps = Steps(schema, aggregation, start.tobytes())
        steps.state = state
        steps.go(result.tobytes())
        models.append(steps.values(dtype))
        state = steps.state
    return np.array(models)


def numbers_of(theirs: str, made: int) -> dict[str, float]:
    """The numbers of an optimizer in its step of this number.

    FedAdam corrects the bias of the rate, and so not that of epsilon. Ours, as PyTorch's, is the same with another epsilon.
    """
    numbers: dict[str, float] = NUMBERS[theirs.split(maxsplit=1)[0]]
    if not theirs.startswith("adam"):
        return numbers
    return numbers | {"epsilon": numbers["epsilon"] / math.sqrt(1 - numbers["beta2"] ** made)}


OPTIMIZERS = {
    "sgd": pb.OPTIMIZER_SGD,
    "adagrad": pb.OPTIMIZER_ADAGRAD,
    "yogi": pb.OPTIMIZER_YOGI,
    "adam from round 0": pb.OPTIMIZER_ADAM,
}


@pytest.mark.parametrize("dtype", ["F32", "F64"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimizer_steps_where_flowers_does(name: str, dtype: str) -> None:
    """FedAvgM, FedAdagrad, FedYogi, and FedAdam where its rounds are counted from 0.

    FedYogi's squares begin with 0, ours with epsilon * epsilon as in the paper: so this epsilon is tiny.
    """
    theirs = FLOWER[f"{name} {dtype}"].astype(DTYPES[dtype])  # FedAdam's are of binary64
    ours = stepped(OPTIMIZERS[name], name, dtype)
    assert_equal_to_rounding(ours, theirs, float(np.abs(theirs).max()))


def test_flowers_adam_counts_rounds_from_one_and_corrects_its_bias_for_one_step_too_many() -> None:
    """So with these betas its first step is 0.74 times that of Adam's paper, of PyTorch and of ours."""
    beta1, beta2 = NUMBERS["adam"]["beta1"], NUMBERS["adam"]["beta2"]
    ours, theirs = stepped(pb.OPTIMIZER_ADAM, "adam", "F64"), FLOWER["adam F64"]
    before = np.vstack([FLOWER["base F64"], theirs[:-1]])
    made = np.arange(1, len(theirs) + 1)
    rates = [np.sqrt(1 - beta2**steps) / (1 - beta1**steps) for steps in (made, made + 1)]
    factors = rates[1] / rates[0]
    np.testing.assert_allclose(theirs - before, factors[:, None] * (ours - before), rtol=1e-9)
    assert factors[0] == pytest.approx(0.742, abs=1e-3)


def test_flowers_adam_releases_binary64_for_a_model_of_binary32() -> None:
    kinds = {name: FLOWER[f"{name} F32"].dtype for name in OPTIMIZERS}
    assert kinds.pop("adam from round 0") == np.float64
    assert set(kinds.values()) == {np.dtype(np.float32)}
