"""Every rule at a real aggregator: the release is what the paper's formula gives, in whatever order updates come."""

import json
from collections.abc import Callable, Iterator, Mapping
from hashlib import sha256
from typing import Any

import grpc
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import stats  # type: ignore[import-untyped]  # its types are a package of their own

from cairn.model.schema import Schema, TensorSpec
from cairn.protocol.aggregation import Aggregation
from cairn.protocol.words import RULES
from cairn.v1 import aggregator_pb2
from cairn.v1 import round_pb2 as pb
from tests.service.network import OWNERS, SECONDS, Ended, Job, Network, OpenRound, refused

SIZE = 6
SCHEMA = Schema.of([TensorSpec("weight", "F32", (SIZE,))])

Vector = NDArray[np.float64]
Updates = Mapping[str, NDArray[np.float32]]
Formula = Callable[[Vector, Updates, pb.ReleaseStatement], Vector]


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Network]:
    network = Network(
        tmp_path_factory.mktemp("rules"), floor=2, lease_seconds=600, rules=list(RULES)
    )
    yield network
    network.stop()


def stacked(updates: Updates) -> Vector:
    return np.stack([updates[owner] for owner in sorted(updates)]).astype(np.float64)


def mean(_base: Vector, updates: Updates, _stated: pb.ReleaseStatement) -> Vector:
    return np.asarray(stacked(updates).mean(axis=0))


def norm_bounded_mean(base: Vector, updates: Updates, _stated: pb.ReleaseStatement) -> Vector:
    """Sun et al. 2019: the mean of what updates differ by, each scaled to the norm at the most."""
    deltas = stacked(updates) - base
    factors = np.minimum(1, NORM / np.linalg.norm(deltas, axis=1))
    return np.asarray(base + (factors[:, None] * deltas).mean(axis=0))


def trimmed_mean(_base: Vector, updates: Updates, _stated: pb.ReleaseStatement) -> Vector:
    """Yin et al. 2018, definition 2."""
    return np.asarray(np.sort(stacked(updates), axis=0)[1:-1].mean(axis=0))


def bucketed_median(_base: Vector, updates: Updates, stated: pb.ReleaseStatement) -> Vector:
    """Karimireddy, He, Jaggi 2022, algorithm 1, with the median: five owners are two buckets."""
    seed = stated.draw_seed
    drawn = sorted(updates, key=lambda owner: sha256(seed + owner.encode()).digest())
    means = [
        np.mean([updates[o].astype(float) for o in bucket], axis=0) for bucket in halves(drawn)
    ]
    return np.asarray(np.median(np.stack(means), axis=0))


def halves(drawn: list[str]) -> tuple[list[str], list[str]]:
    return drawn[:3], drawn[3:]


def multi_krum(_base: Vector, updates: Updates, _stated: pb.ReleaseStatement) -> Vector:
    """Blanchard et al. 2017: the two of the smallest sums of distances to their n - f - 2 nearest."""
    points = stacked(updates)
    distances = ((points[:, None] - points[None]) ** 2).sum(axis=2)
    scores = np.sort(distances, axis=1)[:, 1 : len(points) - 1 - 2 + 1].sum(axis=1)
    return np.asarray(points[np.argsort(scores)[:2]].mean(axis=0))


def geometric_median(_base: Vector, updates: Updates, _stated: pb.ReleaseStatement) -> Vector:
    """Pillutla et al. 2022, algorithm 2: the smoothed Weiszfeld iteration from the mean."""
    points = stacked(updates)
    found = points.mean(axis=0)
    for _ in range(8):
        weights = 1 / np.maximum(1e-6, np.linalg.norm(points - found, axis=1))
        found = (weights[:, None] * points).sum(axis=0) / weights.sum()
    return np.asarray(found)


def centred_clipping(base: Vector, updates: Updates, _stated: pb.ReleaseStatement) -> Vector:
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
    ended = run(job, updates, base, list(OWNERS))[1]
    released = np.frombuffer(ended.payload, "<f4")
    expected = formula(base.astype(float), updates, ended.statement)
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


def test_a_draw_is_committed_to_in_the_manifest_and_told_in_the_statement_alone(
    network: Network,
) -> None:
    """Else a coordinator could look at the draw before anybody trains, and abort the round for another one."""
    bucketed = Aggregation(rule=pb.RULE_BUCKETED_MEDIAN, rule_numbers={"bucket": 2})
    job = network.job(schema=SCHEMA, owners=OWNERS, aggregation=bucketed)
    opened, ended = run(job, updates_of(4), base_of(job), list(OWNERS))
    seed = ended.statement.draw_seed
    assert opened.manifest.draw_commitment == sha256(seed).digest()
    assert len(seed) == 32
    assert seed not in opened.signed.body
    entries = network.record("coordinator").ListEntries(
        aggregator_pb2.ListEntriesRequest(first=opened.manifest.ledger_number + 1, limit=1),
        timeout=SECONDS,
    )
    opening = json.loads(entries.entries[0].body)
    assert opening["manifest_digest"] == opened.digest.hex()
    assert opening["draw_commitment"] == sha256(seed).hexdigest()


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


class Yogi:
    """Reddi et al. 2021, algorithm 2, whose epsilon is called tau there; PyTorch has none."""

    def __init__(self, parameters: list[torch.nn.Parameter], lr: float) -> None:
        (self.parameter,) = parameters
        self.lr = lr
        self.mean = torch.zeros(SIZE, dtype=torch.float64)
        self.squares = torch.full((SIZE,), EPSILON**2, dtype=torch.float64)

    def step(self) -> None:
        gradient = self.parameter.grad
        assert gradient is not None
        square = gradient**2
        self.mean = 0.9 * self.mean + 0.1 * gradient
        self.squares = self.squares - 0.01 * square * torch.sign(self.squares - square)
        with torch.no_grad():
            self.parameter.sub_(self.lr * self.mean / (self.squares.sqrt() + EPSILON))


EPSILON = 1e-3
BETAS = {"beta1": 0.9, "beta2": 0.99}
OPTIMIZERS: dict[str, tuple["pb.Optimizer", dict[str, float], Callable[[Any], Any]]] = {
    "sgd": (
        pb.OPTIMIZER_SGD,
        {"lr": 0.5, "momentum": 0.0},
        lambda p: torch.optim.SGD(p, lr=0.5),
    ),
    "momentum": (
        pb.OPTIMIZER_SGD,
        {"lr": 0.5, "momentum": 0.5},
        lambda p: torch.optim.SGD(p, lr=0.5, momentum=0.5),
    ),
    "adagrad": (
        pb.OPTIMIZER_ADAGRAD,
        {"lr": 0.1, "epsilon": EPSILON},
        lambda p: torch.optim.Adagrad(p, lr=0.1, eps=EPSILON),
    ),
    "adam": (
        pb.OPTIMIZER_ADAM,
        {"lr": 0.1, **BETAS, "epsilon": EPSILON},
        lambda p: torch.optim.Adam(p, lr=0.1, betas=(0.9, 0.99), eps=EPSILON),
    ),
    "yogi": (
        pb.OPTIMIZER_YOGI,
        {"lr": 0.1, **BETAS, "epsilon": EPSILON},
        lambda p: Yogi(p, lr=0.1),
    ),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimizer_steps_from_release_to_release(network: Network, name: str) -> None:
    """As PyTorch's does in binary64, on the base less the mean."""
    optimizer, numbers, make = OPTIMIZERS[name]
    steps = Aggregation(optimizer=optimizer, optimizer_numbers=numbers)
    job = network.job(schema=SCHEMA, owners=OWNERS, aggregation=steps)
    base = base_of(job)
    job.bring(base.tobytes())
    parameter = torch.nn.Parameter(torch.from_numpy(base.astype(float)))
    theirs = make([parameter])
    for number in (1, 2, 3):
        updates = updates_of(number)
        ended = job.run(
            {owner: update.tobytes() for owner, update in updates.items()}, number, base.tobytes()
        )
        parameter.grad = parameter.detach() - torch.from_numpy(stacked(updates).mean(axis=0))
        theirs.step()
        base = np.frombuffer(ended.payload, "<f4")
        assert base == pytest.approx(parameter.detach().numpy(), rel=1e-5, abs=1e-5)


def descent(rule: "pb.Rule", lr: float) -> Aggregation:
    return Aggregation(
        content=pb.CONTENT_GRADIENTS,
        rule=rule,
        optimizer=pb.OPTIMIZER_SGD,
        optimizer_numbers={"lr": lr, "momentum": 0.0},
    )


@pytest.mark.parametrize(("rule", "combine"), [(pb.RULE_MEAN, np.mean), (pb.RULE_SUM, np.sum)])
def test_gradients_are_averaged_or_added_and_stepped_along(
    network: Network, rule: "pb.Rule", combine: Callable[..., Any]
) -> None:
    job = network.job(schema=SCHEMA, owners=OWNERS, aggregation=descent(rule, 0.1))
    base, gradients = base_of(job), updates_of(5)
    _, ended = run(job, gradients, base, list(OWNERS))
    expected = base - 0.1 * combine(stacked(gradients), axis=0)
    assert np.frombuffer(ended.payload, "<f4") == pytest.approx(expected, rel=1e-6, abs=1e-6)


def test_gradients_by_examples_are_the_full_batch_step_on_everybodys_rows(network: Network) -> None:
    """FedSGD, McMahan et al. 2017, section 2: each owner sends the gradient of its own mean square."""
    random = np.random.default_rng(4)
    rows = {owner: random.normal(0, 1, (n, SIZE)) for n, owner in enumerate(OWNERS, start=5)}
    targets = {owner: random.normal(0, 1, len(own)) for owner, own in rows.items()}
    together = np.concatenate(list(rows.values())), np.concatenate(list(targets.values()))
    job = network.job(
        schema=SCHEMA,
        owners=OWNERS,
        aggregation=descent(pb.RULE_MEAN, 0.05),
        weighting=pb.WEIGHTING_EXAMPLES,
    )
    base = base_of(job)
    job.bring(base.tobytes())
    central = base.astype(float)
    for number in (1, 2, 3):
        opened = job.open(OWNERS, base.tobytes(), number)
        for owner in OWNERS:
            opened.join(owner)
            gradient = gradient_of(base.astype(float), rows[owner], targets[owner])
            opened.push(owner, gradient.astype("<f4").tobytes(), examples=len(rows[owner]))
        base = np.frombuffer(opened.ends().payload, "<f4")
        central = central - 0.05 * gradient_of(central, *together)
        assert base == pytest.approx(central, rel=1e-5, abs=1e-6)


def gradient_of(weights: Vector, rows: Vector, targets: Vector) -> Vector:
    """Of the mean of the squares of what the rows miss."""
    return np.asarray(2 / len(targets) * (rows @ weights - targets) @ rows)


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
    ended = run(job, gradients, base, list(OWNERS))[1]
    expected = base - norm_bounded_mean(np.zeros(SIZE), gradients, ended.statement)
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
    exact = norm_bounded_mean(base.astype(float), updates, ended.statement)
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
