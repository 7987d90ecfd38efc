"""Whole rounds over the real network: what is released is the average of exactly the accepted updates."""

import itertools
import random
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from typing import Any

import grpc
import numpy as np
import pytest
import torch
from blake3 import blake3
from numpy.typing import NDArray
from safetensors.torch import save

from cairn.model.schema import DTYPES, Schema, TensorSpec
from cairn.tasks.state_dict import payload_of, read_state
from cairn.v1 import aggregator_pb2
from cairn.v1 import round_pb2 as pb
from tests.chaos.puppet import LEASE_SECONDS, Puppet
from tests.service.network import OWNERS, SECONDS, Job, Network, OpenRound, refused

RELEASED = aggregator_pb2.ROUND_STATE_RELEASED
ABORTED = aggregator_pb2.ROUND_STATE_ABORTED
SMALLEST_CHUNK = 64 << 10  # of a stream, its last apart
Part = aggregator_pb2.SubmitUpdateRequest


def floats(*values: float) -> bytes:
    return np.array(values, np.float32).tobytes()


def one_hot(owner: str) -> bytes:
    """An update that is 1 at the owner's own place: n times the average says who was counted."""
    return floats(*(float(owner == name) for name in OWNERS))


def counted(payload: bytes, contributors: int) -> list[str]:
    shares = np.frombuffer(payload, np.float32) * contributors
    assert set(np.round(shares, 5)) <= {0.0, 1.0}
    return [name for name, share in zip(OWNERS, shares, strict=True) if share > 0.5]


def nearest_float32(value: Fraction) -> np.float32:
    """The float32 next to an exact value, ties to even, by trying the three that are close."""
    guess = np.float32(float(value))
    near = [
        np.nextafter(guess, np.float32(-np.inf)),
        guess,
        np.nextafter(guess, np.float32(np.inf)),
    ]
    return min(near, key=lambda f: (abs(Fraction(float(f)) - value), int(f.view(np.int32)) & 1))


def mean_of(column: NDArray[Any]) -> Fraction:
    """The exact mean of what each owner has at one place."""
    return sum(Fraction(float(value)) for value in column) / Fraction(len(column))


HOT = Schema.of([TensorSpec("who", "F32", (len(OWNERS),))])


@pytest.fixture(scope="module")
def generous_network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Network]:
    """An aggregator that allows values and weights as large as there are."""
    network = Network(
        tmp_path_factory.mktemp("generous"),
        largest_value=1e308,
        largest_integer=2**63 - 1,
        largest_weight_ratio=2**31 - 1,
    )
    yield network
    network.stop()


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as pool:
        yield pool


def test_a_release_is_the_average_of_exactly_the_accepted_updates(network: Network) -> None:
    for size in range(2, len(OWNERS) + 1):
        for cohort in itertools.combinations(OWNERS, size):
            ended = network.job(schema=HOT).run({owner: one_hot(owner) for owner in cohort})
            assert ended.state == RELEASED
            assert ended.statement.contributors == size
            assert counted(ended.payload, size) == list(cohort)


def test_refused_declined_and_half_pushed_updates_are_not_in_the_average(network: Network) -> None:
    opened = network.job(schema=HOT).open(OWNERS)
    for owner in OWNERS:
        opened.join(owner)
    opened.push("alice", one_hot("alice"))
    with refused(grpc.StatusCode.INVALID_ARGUMENT, reason="NON_FINITE"):
        opened.push("bob", floats(0, np.nan, 0, 0, 0))
    header, chunk, _ = opened.parts(one_hot("carol"))
    with refused(grpc.StatusCode.INVALID_ARGUMENT):
        opened.submit("carol", [header, chunk])
    opened.decline("carol", pb.REASON_STOPPING)
    opened.push("dave", one_hot("dave"))
    opened.push("erin", one_hot("erin"))
    ended = opened.ends()
    assert counted(ended.payload, 3) == ["alice", "dave", "erin"]
    assert ended.statement.contributors == 3
    assert ended.exclusions == {"bob": "NOT_COUNTED", "carol": "STOPPING"}
    stated = {e.owner: pb.Reason.Name(e.reason) for e in ended.statement.exclusions}
    assert stated == {"bob": "REASON_NOT_COUNTED", "carol": "REASON_STOPPING"}


def test_a_bad_push_after_an_accepted_one_does_not_take_the_update_out_of_the_average(
    network: Network,
) -> None:
    """Else the release would be the average of fewer owners than its statement counts."""
    opened = network.job(schema=HOT).open(["alice", "bob"])
    for owner in ("alice", "bob"):
        opened.join(owner)
    opened.push("bob", one_hot("bob"))
    with refused(grpc.StatusCode.INVALID_ARGUMENT, reason="EXAMPLES_REFUSED"):
        opened.push("bob", one_hot("bob"), examples=0)
    with refused(grpc.StatusCode.ALREADY_EXISTS, "another update", "CONFLICT"):
        opened.push("bob", floats(0, np.nan, 0, 0, 0))
    opened.push("alice", one_hot("alice"))
    ended = opened.ends()
    assert counted(ended.payload, 2) == ["alice", "bob"]
    assert ended.statement.contributors == 2


def test_an_update_that_is_pushed_again_and_again_is_counted_once(network: Network) -> None:
    opened = network.job(schema=HOT).open(["alice", "bob"])
    for owner in ("alice", "bob"):
        opened.join(owner)
    for _ in range(3):
        opened.push("alice", one_hot("alice"))
        opened.join("alice")
    opened.push("bob", one_hot("bob"))
    assert counted(opened.ends().payload, 2) == ["alice", "bob"]


@pytest.mark.parametrize("seed", range(6))
def test_the_average_does_not_depend_on_the_order_of_arrival(network: Network, seed: int) -> None:
    generator = np.random.default_rng(1)  # of values whose sum in binary64 depends on its order
    values = generator.standard_normal((len(OWNERS), 300)) * 10.0 ** generator.integers(-9, 9, 300)
    schema = Schema.of([TensorSpec("t", "F32", (300,)), TensorSpec("u", "F64", (300,))])
    updates = {
        o: v.tobytes() + v.astype("f4").tobytes() for o, v in zip(OWNERS, values, strict=True)
    }
    order = list(OWNERS)
    random.Random(seed).shuffle(order)
    opened = network.job(schema=schema).open(OWNERS)
    for owner in OWNERS:
        opened.join(owner)
    for owner in order:
        opened.push(owner, updates[owner])
    double = [float(mean_of(column)) for column in values.T]
    single = [nearest_float32(mean_of(column)) for column in values.astype("f4").T]
    expected = np.array(double).tobytes() + np.array(single, "f4").tobytes()
    assert opened.ends().payload == expected


def test_pushes_at_the_same_time_give_the_same_average(network: Network) -> None:
    schema = Schema.of([TensorSpec("t", "F32", (3_000_000,))])  # 12 MB: chunks interleave
    generator = np.random.default_rng(2)
    updates = {owner: generator.standard_normal(3_000_000, np.float32) for owner in OWNERS}
    opened = network.job(schema=schema).open(OWNERS)
    for owner in OWNERS:
        opened.join(owner)
    with ThreadPoolExecutor(len(OWNERS)) as pool:
        list(pool.map(lambda owner: opened.push(owner, updates[owner].tobytes()), OWNERS))
    total = np.zeros(3_000_000)
    for owner in OWNERS:
        total += updates[owner]
    assert opened.ends().payload == (total / 5).astype(np.float32).tobytes()


def test_a_job_weighted_by_examples_is_the_exact_weighted_mean(generous_network: Network) -> None:
    schema = Schema.of([TensorSpec("t", "F32", (200,)), TensorSpec("n", "I64", (50,))])
    generator = np.random.default_rng(3)
    examples = dict(zip(OWNERS, (1, 17, 2**20 + 1, 2**20 - 1, 3), strict=True))
    singles = {o: generator.integers(-1000, 1000, 200) / np.float32(64) for o in OWNERS}
    integers = {o: generator.integers(-(2**62), 2**62, 50) for o in OWNERS}
    job = generous_network.job(
        schema=schema, weighting=pb.WEIGHTING_EXAMPLES, examples=(1, 2**31 - 1)
    )
    opened = job.open(OWNERS)
    for owner in OWNERS:
        opened.join(owner)
        payload = integers[owner].tobytes() + singles[owner].astype(np.float32).tobytes()
        metrics = {"loss": float(singles[owner][0])}
        opened.push(owner, payload, examples=examples[owner], metrics=metrics)
    ended = opened.ends()

    def mean(column: Sequence[Any]) -> Fraction:
        weighted = (Fraction(float(x)) * w for x, w in zip(column, examples.values(), strict=True))
        return sum(weighted) / Fraction(sum(examples.values()))

    def exact_mean(column: Sequence[int]) -> int:
        weighted = sum(int(x) * w for x, w in zip(column, examples.values(), strict=True))
        return round(Fraction(weighted, sum(examples.values())))  # ties to even

    whole = [exact_mean([integers[o][i] for o in OWNERS]) for i in range(50)]
    parts = [nearest_float32(mean([singles[o][i] for o in OWNERS])) for i in range(200)]
    expected = np.array(whole, np.int64).tobytes() + np.array(parts, np.float32).tobytes()
    assert ended.payload == expected
    losses = [float(singles[o][0]) for o in OWNERS]
    loss, size = float(mean(losses)), float(mean([abs(each) for each in losses]))
    assert ended.statement.metrics["loss"] == pytest.approx(loss, abs=size / 2**12)


def test_without_weighting_examples_do_not_matter(network: Network) -> None:
    opened = network.job(schema=HOT, examples=(1, 1_000_000)).open(["alice", "bob"])
    for owner, examples in (("alice", 1), ("bob", 1_000_000)):
        opened.join(owner)
        opened.push(owner, one_hot(owner), examples=examples)
    assert opened.ends().payload == floats(0.5, 0.5, 0, 0, 0)


class EveryType(torch.nn.Module):
    """BatchNorm with its counter, and a buffer of every type, a scalar and an empty one."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.norm = torch.nn.BatchNorm2d(3)
        self.norm(torch.randn(seed + 2, 3, 4, 4))
        for name in ("float16", "bfloat16", "float32", "float64"):
            self.register_buffer(f"a_{name}", torch.randn(5).to(getattr(torch, name)))
        for name in ("uint8", "int8", "int16", "int32", "int64"):
            self.register_buffer(
                f"a_{name}", torch.randint(0, 100, (5,), dtype=getattr(torch, name))
            )
        self.register_buffer("a_bool", torch.rand(5) > 0.5)
        self.register_buffer("scalar", torch.tensor(float(seed)))
        self.register_buffer("empty", torch.zeros(0, 3))


def test_every_type_of_tensor_passes_through_a_round_as_it_is(network: Network) -> None:
    models = {owner: EveryType(seed) for seed, owner in enumerate(OWNERS[:3])}
    schema, _ = payload_of(models["alice"].state_dict())
    updates = {owner: bytes(payload_of(m.state_dict())[1]) for owner, m in models.items()}
    ended = network.job(schema=schema).run(updates)
    released = read_state(schema, bytearray(ended.payload))
    states = [model.state_dict() for model in models.values()]
    assert {n: t.dtype for n, t in released.items()} == {n: t.dtype for n, t in states[0].items()}
    for name, tensor in released.items():
        stacked = torch.stack([state[name] for state in states]).double()
        mean = stacked.sum(0) / 3
        if tensor.dtype is torch.bool:
            expected = stacked.sum(0) >= 2
        elif tensor.is_floating_point():
            expected = mean.to(tensor.dtype)
        else:
            expected = mean.round().to(tensor.dtype)  # thirds have no ties
        assert torch.equal(tensor, expected), name


def test_the_release_is_the_file_that_safetensors_would_write(network: Network) -> None:
    model = EveryType(7)
    schema, payload = payload_of(model.state_dict())
    ended = network.job(schema=schema).run({"alice": bytes(payload), "bob": bytes(payload)})
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    assert ended.statement.release_digest == blake3(save(state)).digest()


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_mean_of_equal_updates_is_that_update(network: Network, dtype: str) -> None:
    values: NDArray[Any] = np.arange(100).astype(np.int8).astype(DTYPES[dtype])
    schema = Schema.of([TensorSpec("t", dtype, (10, 10))])
    ended = network.job(schema=schema).run(dict.fromkeys(OWNERS, values.tobytes()))
    assert ended.payload == values.tobytes()


def test_only_metrics_that_all_counted_owners_report_are_released(network: Network) -> None:
    opened = network.job(schema=HOT).open(["alice", "bob"])
    for owner, metrics in (("alice", {"loss": 1.0, "mine": 7.0}), ("bob", {"loss": 2.0})):
        opened.join(owner)
        opened.push(owner, one_hot(owner), metrics=metrics)
    assert dict(opened.ends().statement.metrics) == {"loss": 1.5}


def test_an_evaluation_releases_averaged_metrics_and_no_tensors(network: Network) -> None:
    job = network.job(schema=HOT)
    base = job.run({owner: one_hot(owner) for owner in ("alice", "bob")}).payload
    opened = job.open(base=base, phase=pb.PHASE_EVALUATE)
    for owner, accuracy in (("alice", 0.5), ("bob", 1.0)):
        opened.join(owner)
        opened.push(owner, b"", metrics={"accuracy": accuracy})
    ended = opened.ends()
    assert (ended.state, ended.payload) == (RELEASED, b"")
    assert dict(ended.statement.metrics) == {"accuracy": 0.75}
    assert ended.statement.release_digest == HOT.digest(base)
    assert job.open(number=2, base=base).manifest.round == 2


def test_every_collection_of_a_release_gives_the_same_bytes(network: Network) -> None:
    opened = network.job(schema=HOT).open(["alice", "bob"])
    for owner in ("alice", "bob"):
        opened.join(owner)
        opened.push(owner, one_hot(owner))
    opened.ends()
    assert opened.collect() == opened.collect()


def test_while_a_round_is_open_nobody_is_told_which_owner_is_how_far(network: Network) -> None:
    opened = network.job(schema=HOT).open(["alice", "bob", "carol"])
    states = opened.watch()
    first = next(states)
    assert (first.state, list(first.exclusions)) == (aggregator_pb2.ROUND_STATE_OPEN, [])
    for owner in ("alice", "bob", "carol"):
        opened.join(owner)
    opened.decline("carol", pb.REASON_TASK_FAILED)
    opened.push("alice", one_hot("alice"))
    opened.push("bob", one_hot("bob"))
    *before, last = states
    assert all(not list(state.exclusions) for state in before)
    assert [(e.owner, e.reason) for e in last.exclusions] == [("carol", pb.REASON_NOT_COUNTED)]


def test_jobs_of_two_coordinators_go_on_side_by_side(network: Network) -> None:
    jobs = [network.job(schema=HOT, coordinator=who) for who in ("coordinator", "rival")]
    rounds = [job.open(["alice", "bob"]) for job in jobs]
    for opened in rounds:
        opened.join("alice")
        opened.join("bob")
    rounds[0].push("alice", one_hot("alice"))
    rounds[1].push("alice", one_hot("carol"))
    rounds[1].push("bob", one_hot("dave"))
    rounds[0].push("bob", one_hot("bob"))
    assert counted(rounds[0].ends().payload, 2) == ["alice", "bob"]
    assert counted(rounds[1].ends().payload, 2) == ["carol", "dave"]


def test_a_round_goes_through_many_rounds_in_a_strict_chain(network: Network) -> None:
    job, base = network.job(schema=HOT, rounds=10), None
    for number in range(1, 11):
        ended = job.run(
            {"alice": floats(*[number] * 5), "bob": floats(*[0.0] * 5)}, number=number, base=base
        )
        base = ended.payload
        assert base == floats(*[number / 2] * 5)
        assert ended.statement.round == number


def test_a_round_that_is_being_sealed_cannot_be_overtaken_from_an_older_base(
    network: Network, pool: ThreadPoolExecutor
) -> None:
    """Else a coordinator could put its own weights in the place of the release that is to come."""
    job = network.job(schema=Schema.of([TensorSpec("t", "F32", (8_000_000,))]))
    opened = job.open()
    for owner in ("alice", "bob"):
        opened.join(owner)
    zeros = bytes(32_000_000)
    opened.push("alice", zeros)
    last = pool.submit(opened.push, "bob", zeros)
    while True:
        with pytest.raises(grpc.RpcError) as caught:
            job.open(number=2, base=zeros[:-4] + floats(1))
        if "not the last release" in str(caught.value):
            break
        assert "is open" in str(caught.value)
    last.result()
    assert opened.ends().state == RELEASED


# Deadlines and leases: on the aggregator with a floor of three and a clock that the test puts on.


def joined(job: Job, cohort: Sequence[str], *present: str) -> OpenRound:
    opened = job.open(cohort)
    for owner in present:
        opened.join(owner)
    return opened


def push_all(opened: OpenRound, owners: Sequence[str]) -> None:
    for owner in owners:
        opened.push(owner, one_hot(owner))


def stays_open_for(network: Puppet, opened: OpenRound, seconds: float) -> None:
    """Put the clock on; the round sees it, and does not end: alice, whose update is in, may still join."""
    network.advance(seconds)
    network.let_round_look()
    assert opened.join("alice").update_accepted


def test_a_dead_owner_costs_its_lease_and_not_the_deadline(timed_network: Puppet) -> None:
    job = timed_network.job(schema=HOT, deadline=10 * LEASE_SECONDS)
    opened = joined(job, OWNERS[:4], *OWNERS[:3])
    push_all(opened, OWNERS[:3])
    stays_open_for(timed_network, opened, LEASE_SECONDS - 1)
    timed_network.advance(1)
    ended = opened.ends()
    assert counted(ended.payload, 3) == list(OWNERS[:3])
    assert ended.exclusions == {"dave": "LEASE_EXPIRED"}


def test_too_many_dead_owners_abort_the_round_after_the_lease(timed_network: Puppet) -> None:
    job = timed_network.job(schema=HOT, deadline=10 * LEASE_SECONDS)
    opened = joined(job, OWNERS[:3], "alice", "bob")
    push_all(opened, ["alice", "bob"])
    stays_open_for(timed_network, opened, LEASE_SECONDS - 1)
    timed_network.advance(1)
    ended = opened.ends()
    assert (ended.state, ended.reason) == (ABORTED, "BELOW_FLOOR")
    assert ended.exclusions == {"carol": "LEASE_EXPIRED"}
    with refused(grpc.StatusCode.FAILED_PRECONDITION):
        opened.collect()


def train_until_deadline(network: Puppet, opened: OpenRound, *owners: str) -> None:
    """These live, and train for three leases, at the end of which the round has its deadline."""
    for _ in range(5):
        stays_open_for(network, opened, LEASE_SECONDS / 2)
        for owner in owners:
            opened.join(owner)
    stays_open_for(network, opened, LEASE_SECONDS / 2 - 1)
    network.advance(1)


def test_at_the_deadline_a_silent_owner_is_left_out(timed_network: Puppet) -> None:
    job = timed_network.job(schema=HOT, deadline=3 * LEASE_SECONDS)
    opened = joined(job, OWNERS[:4], *OWNERS[:4])
    push_all(opened, OWNERS[:3])
    train_until_deadline(timed_network, opened, "dave")
    ended = opened.ends()
    assert counted(ended.payload, 3) == list(OWNERS[:3])
    assert ended.exclusions == {"dave": "DEADLINE"}


def test_at_the_deadline_too_few_updates_abort_the_round(timed_network: Puppet) -> None:
    job = timed_network.job(schema=HOT, deadline=3 * LEASE_SECONDS)
    opened = joined(job, OWNERS[:3], *OWNERS[:3])
    push_all(opened, ["alice"])
    train_until_deadline(timed_network, opened, "bob", "carol")
    ended = opened.ends()
    assert (ended.state, ended.reason) == (ABORTED, "BELOW_FLOOR")
    assert ended.exclusions == {"bob": "DEADLINE", "carol": "DEADLINE"}


def test_an_owner_that_was_lost_may_come_back_while_the_round_is_open(
    timed_network: Puppet,
) -> None:
    job = timed_network.job(schema=HOT, deadline=10 * LEASE_SECONDS)
    opened = joined(job, OWNERS, *OWNERS)
    push_all(opened, OWNERS[:3])
    stays_open_for(timed_network, opened, LEASE_SECONDS - 1)
    opened.join("erin")
    stays_open_for(timed_network, opened, 1)
    header, *_ = opened.parts(one_hot("dave"))
    with refused(grpc.StatusCode.FAILED_PRECONDITION, "lost"):
        opened.submit("dave", [header])
    opened.join("dave")
    push_all(opened, ["dave", "erin"])
    assert counted(opened.ends().payload, 5) == list(OWNERS)


def test_a_push_that_is_under_way_keeps_the_owners_lease(timed_network: Puppet) -> None:
    """It takes two and a half leases, and is never silent for one."""
    schema = Schema.of([TensorSpec("who", "F32", (len(OWNERS), 4 << 20 >> 2))])  # 4 MiB each
    updates = {
        owner: np.repeat(np.frombuffer(one_hot(owner), np.float32), 4 << 20 >> 2).tobytes()
        for owner in OWNERS[:3]
    }
    job = timed_network.job(schema=schema, deadline=10 * LEASE_SECONDS)
    opened = joined(job, OWNERS[:3], *OWNERS[:3])
    for owner in OWNERS[:2]:
        opened.push(owner, updates[owner])

    def slow() -> Iterator[Part]:
        # gRPC asks for the next part once the last was let through, and at most 2 MiB lie on the way: of each
        # four chunks the aggregator has taken some in since the clock was put on.
        for number, part in enumerate(opened.parts(updates["carol"])):
            if number % 4 == 0 and number:
                timed_network.advance(LEASE_SECONDS / 2)
                timed_network.let_round_look()
            yield part

    timed_network.intake("carol").SubmitUpdate(slow(), timeout=SECONDS)
    shares = np.frombuffer(opened.ends().payload, np.float32).reshape(len(OWNERS), -1)
    for share in shares.T[:: SMALLEST_CHUNK // 4]:  # every chunk has arrived as it was sent
        assert counted(share.tobytes(), 3) == list(OWNERS[:3])
