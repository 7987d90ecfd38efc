"""Every rule at a real aggregator: the release is what the paper's formula gives, in whatever order updates come."""

from collections.abc import Callable, Iterator, Mapping
from hashlib import sha256

import grpc
import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats  # type: ignore[import-untyped]  # its types are a package of their own

from cairn.model.schema import Schema, TensorSpec
from cairn.protocol.aggregation import Aggregation
from cairn.protocol.words import RULES
from cairn.v1 import aggregator_pb2
from cairn.v1 import round_pb2 as pb
from tests.service.network import OWNERS, Ended, Job, Network, OpenRound, refused

SIZE = 6
SCHEMA = Schema.of([TensorSpec("weight", "F32", (SIZE,))])

Vector = NDArray[np.float64]
Updates = Mapping[str, NDArray[np.float32]]
Formula = Callable[[Vector, Updates, OpenRound], Vector]


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Network]:
    network = Network(
        tmp_path_factory.mktemp("rules"), floor=2, lease_seconds=600, rules=list(RULES)
    )
    yield network
    network.stop()


def stacked(updates: Updates) -> Vector:
    return np.stack([updates[owner] for owner in sorted(updates)]).astype(np.float64)


def mean(_base: Vector, updates: Updates, _opened: OpenRound) -> Vector:
    return np.asarray(stacked(updates).mean(axis=0))


def norm_bounded_mean(base: Vector, updates: Updates, _opened: OpenRound) -> Vector:
    """Sun et al. 2019: the mean of what updates differ by, each scaled to the norm at the most."""
    deltas = stacked(updates) - base
    factors = np.minimum(1, NORM / np.linalg.norm(deltas, axis=1))
    return np.asarray(base + (factors[:, None] * deltas).mean(axis=0))


def trimmed_mean(_base: Vector, updates: Updates, _opened: OpenRound) -> Vector:
    """Yin et al. 2018, definition 2."""
    return np.asarray(np.sort(stacked(updates), axis=0)[1:-1].mean(axis=0))


def bucketed_median(_base: Vector, updates: Updates, opened: OpenRound) -> Vector:
    """Karimireddy, He, Jaggi 2022, algorithm 1, with the median: five owners are two buckets."""
    nonce = opened.manifest.nonce
    drawn = sorted(updates, key=lambda owner: sha256(nonce + owner.encode()).digest())
    means = [
        np.mean([updates[o].astype(float) for o in bucket], axis=0) for bucket in halves(drawn)
    ]
    return np.asarray(np.median(np.stack(means), axis=0))


def halves(drawn: list[str]) -> tuple[list[str], list[str]]:
    return drawn[:3], drawn[3:]


def multi_krum(_base: Vector, updates: Updates, _opened: OpenRound) -> Vector:
    """Blanchard et al. 2017: the two of the smallest sums of distances to their n - f - 2 nearest."""
    points = stacked(updates)
    distances = ((points[:, None] - points[None]) ** 2).sum(axis=2)
    scores = np.sort(distances, axis=1)[:, 1 : len(points) - 1 - 2 + 1].sum(axis=1)
    return np.asarray(points[np.argsort(scores)[:2]].mean(axis=0))


def geometric_median(_base: Vector, updates: Updates, _opened: OpenRound) -> Vector:
    """Pillutla et al. 2022, algorithm 2: the smoothed Weiszfeld iteration from the mean."""
    points = stacked(updates)
    found = points.mean(axis=0)
    for _ in range(8):
        weights = 1 / np.maximum(1e-6, np.linalg.norm(points - found, axis=1))
        found = (weights[:, None] * points).sum(axis=0) / weights.sum()
    return np.asarray(found)


def centred_clipping(base: Vector, updates: Updates, _opened: OpenRound) -> Vector:
    """Karimireddy, He, Jaggi 2021, algorithm 2, from the base."""
    found, points = base, stacked(updates)
    for _ in range(2):
        away = points - found
        factors = np.minimum(1, NORM / np.linalg.norm(away, axis=1))
        found = found + (factors[:, None] * away).mean(axis=0)
    return np.asarray(found)


NORM = 2.0
FORMULAS: list[tuple["pb.Rule", dict[str, float], Formula]] = [
    (pb.RULE_MEAN, {}, mean),
    (pb.RULE_NORM_BOUNDED_MEAN, {"norm": NORM}, norm_bounded_mean),
    (pb.RULE_TRIMMED_MEAN, {"trim": 0.2}, trimmed_mean),
    (pb.RULE_BUCKETED_MEDIAN, {"bucket": 2}, bucketed_median),
    (pb.RULE_MULTI_KRUM, {"byzantine": 1, "select": 2}, multi_krum),
    (pb.RULE_GEOMETRIC_MEDIAN, {"iterations": 8, "smoothing": 1e-6}, geometric_median),
    (pb.RULE_CENTRED_CLIPPING, {"norm": NORM, "iterations": 2}, centred_clipping),
]


def updates_of(seed: int) -> dict[str, NDArray[np.float32]]:
    """Around one point, and one far away."""
    random = np.random.default_rng(seed)
    updates = {owner: random.normal(1, 1, SIZE).astype("<f4") for owner in OWNERS}
    updates["erin"] = (10 * updates["erin"]).astype("<f4")
    return updates


def base_of(job: Job) -> NDArray[np.float32]:
    """A base of this job alone."""
    seed = int.from_bytes(sha256(job.spec.name.encode()).digest()[:8], "big")
    return np.random.default_rng(seed).normal(0, 1, SIZE).astype("<f4")


def run(
    job: Job, updates: Updates, base: NDArray[np.float32], order: list[str]
) -> tuple[OpenRound, Ended]:
    if job.spec.aggregation.needs_base:
        job.bring(base.tobytes())
    opened = job.open(sorted(updates), base=base.tobytes())
    for owner in order:
        opened.join(owner)
        opened.push(owner, updates[owner].tobytes())
    return opened, opened.ends()


@pytest.mark.parametrize(
    ("rule", "numbers", "formula"), FORMULAS, ids=[each[2].__name__ for each in FORMULAS]
)
def test_a_release_is_what_the_formula_of_its_rule_gives(
    network: Network, rule: "pb.Rule", numbers: dict[str, float], formula: Formula
) -> None:
    aggregation = Aggregation(rule=rule, rule_numbers=numbers)
    job = network.job(schema=SCHEMA, owners=OWNERS, aggregation=aggregation)
    updates, base = updates_of(1), base_of(job)
    opened, ended = run(job, updates, base, list(OWNERS))
    released = np.frombuffer(ended.payload, "<f4")
    expected = formula(base.astype(float), updates, opened)
    assert released == pytest.approx(expected, rel=2e-6, abs=2e-6)
    assert ended.statement.aggregation.rule == rule
    assert dict(ended.statement.aggregation.rule_numbers) == numbers


@pytest.mark.parametrize(
    ("rule", "numbers"),
    [(rule, numbers) for rule, numbers, formula in FORMULAS if formula is not bucketed_median],
    ids=str,
)
def test_the_order_in_which_updates_come_changes_no_bit(
    network: Network, rule: "pb.Rule", numbers: dict[str, float]
) -> None:
    """But for bucketed medians, whose every round draws buckets of its own."""
    aggregation = Aggregation(rule=rule, rule_numbers=numbers)
    updates, released = updates_of(2), set()
    for name, order in (("one", list(OWNERS)), ("other", list(reversed(OWNERS)))):
        # Of the same tensors, no other release of this base would be allowed.
        schema = Schema.of([TensorSpec(f"{name} {aggregation}", "F32", (SIZE,))])
        job = network.job(schema=schema, owners=OWNERS, aggregation=aggregation)
        released.add(run(job, updates, np.ones(SIZE, "<f4"), order)[1].payload)
    assert len(released) == 1


def test_a_round_whose_rule_would_average_over_too_few_at_its_end_is_aborted(
    network: Network,
) -> None:
    krum = Aggregation(rule=pb.RULE_MULTI_KRUM, rule_numbers={"byzantine": 1, "select": 2})
    job = network.job(schema=SCHEMA, owners=OWNERS, aggregation=krum)
    opened = job.open(OWNERS)
    for owner in OWNERS:
        opened.join(owner)
        if owner == "erin":
            opened.decline(owner, pb.REASON_STOPPING)
        else:
            opened.push(owner, updates_of(3)[owner].tobytes())
    ended = opened.ends()
    assert (ended.state, ended.reason) == (aggregator_pb2.ROUND_STATE_ABORTED, "BELOW_FLOOR")


@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_an_optimizer_steps_from_release_to_release(network: Network, momentum: float) -> None:
    """As torch.optim.SGD does on the base less the mean, by hand."""
    steps = Aggregation(
        optimizer=pb.OPTIMIZER_SGD, optimizer_numbers={"lr": 0.5, "momentum": momentum}
    )
    job = network.job(schema=SCHEMA, owners=OWNERS, aggregation=steps)
    base = base_of(job)
    job.bring(base.tobytes())
    expected, buffer = base.astype(float), np.zeros(SIZE)
    for number in (1, 2, 3):
        updates = updates_of(number)
        ended = job.run(
            {owner: update.tobytes() for owner, update in updates.items()}, number, base.tobytes()
        )
        gradient = expected - stacked(updates).mean(axis=0)
        buffer = gradient if number == 1 else momentum * buffer + gradient
        expected = expected - 0.5 * buffer
        base = np.frombuffer(ended.payload, "<f4")
        assert base == pytest.approx(expected, rel=1e-5, abs=1e-5)


def test_gradients_are_averaged_and_stepped_along(network: Network) -> None:
    descent = Aggregation(
        content=pb.CONTENT_GRADIENTS,
        optimizer=pb.OPTIMIZER_SGD,
        optimizer_numbers={"lr": 0.1, "momentum": 0.0},
    )
    job = network.job(schema=SCHEMA, owners=OWNERS, aggregation=descent)
    base, gradients = base_of(job), updates_of(5)
    _, ended = run(job, gradients, base, list(OWNERS))
    expected = base - 0.1 * stacked(gradients).mean(axis=0)
    assert np.frombuffer(ended.payload, "<f4") == pytest.approx(expected, rel=1e-6, abs=1e-6)


def test_a_norm_bounds_gradients_by_their_own_length(network: Network) -> None:
    descent = Aggregation(
        content=pb.CONTENT_GRADIENTS,
        rule=pb.RULE_NORM_BOUNDED_MEAN,
        rule_numbers={"norm": NORM},
        optimizer=pb.OPTIMIZER_SGD,
        optimizer_numbers={"lr": 1.0, "momentum": 0.0},
    )
    job = network.job(schema=SCHEMA, owners=OWNERS, aggregation=descent)
    base, gradients = base_of(job), updates_of(6)
    opened, ended = run(job, gradients, base, list(OWNERS))
    expected = base - norm_bounded_mean(np.zeros(SIZE), gradients, opened)
    assert np.frombuffer(ended.payload, "<f4") == pytest.approx(expected, rel=1e-6, abs=1e-6)


PRIVATE = Aggregation(
    rule=pb.RULE_PRIVATE_MEAN,
    rule_numbers={"norm": NORM, "noise": 0.7, "epsilon": 100.0, "delta": 1e-5},
)


def test_a_private_release_is_the_mean_of_bounded_updates_and_noise_of_the_stated_scale(
    network: Network,
) -> None:
    size, random = 20_000, np.random.default_rng(7)
    schema = Schema.of([TensorSpec("weight", "F32", (size,))])
    job = network.job(schema=schema, owners=OWNERS, aggregation=PRIVATE)
    base = random.normal(0, 1, size).astype("<f4")
    updates = {
        owner: (base + random.normal(0, width / size**0.5, size)).astype("<f4")
        for owner, width in zip(OWNERS, (0.5, 1, 3, 10, 100), strict=True)
    }
    opened, ended = run(job, updates, base, list(OWNERS))
    exact = norm_bounded_mean(base.astype(float), updates, opened)
    noise = (np.frombuffer(ended.payload, "<f4") - exact) * len(OWNERS) / (0.7 * NORM)
    assert float(np.std(noise)) == pytest.approx(1, rel=0.03)  # six times what chance allows
    assert float(np.mean(noise)) == pytest.approx(0, abs=0.05)
    assert stats.kstest(noise, "norm").pvalue > 1e-6
    assert ended.statement.contributors == len(OWNERS)
    assert opened.collect()[1] == ended.payload


def test_a_private_job_has_no_metrics_and_no_evaluation(network: Network) -> None:
    """Also where owners send some: no noise was added to them."""
    job = network.job(schema=SCHEMA, owners=OWNERS, aggregation=PRIVATE)
    base = base_of(job)
    job.bring(base.tobytes())
    opened = job.open(OWNERS, base=base.tobytes())
    for owner in OWNERS:
        opened.join(owner)
        opened.push(owner, updates_of(8)[owner].tobytes(), metrics={"loss": 0.25})
    training = opened.ends()
    assert training.statement.contributors == len(OWNERS)
    assert dict(training.statement.metrics) == {}
    with refused(grpc.StatusCode.INVALID_ARGUMENT, "no noise is added", "RULE_REFUSED"):
        job.open(OWNERS, base=training.payload, phase=pb.PHASE_EVALUATE)
