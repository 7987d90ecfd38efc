"""What the releases of a private job have told of each owner: counted in what is recorded, and never beyond the budget."""

import struct
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from aggregator_node.rounds.recorder import RoundRecorder
from aggregator_node.rounds.upload import RoundContext
from aggregator_node.storage.rows import JobRow
from aggregator_node.storage.store import Store
from cairn.errors import Unavailable, WrongState
from cairn.protocol.aggregation import Aggregation
from cairn.protocol.messages import digest_of, job_spec_to_bytes
from cairn.protocol.statements import verified_statement
from cairn.runtime.clock import Clock
from cairn.v1 import round_pb2 as pb
from tests.unit.aggregator_node.rounds.test_recorder import KEY, Bench, Rule, round_of, sealed
from tests.unit.aggregator_node.rounds.test_upload import JOB, SCHEMA

# By the table of dp-accounting 0.6.0's and Opacus 1.6.0's RDP accountants, noise 2 tells epsilon 2.166 in one release and
# 8.079 in ten, at delta 1e-5: of these two budgets the first allows nine releases and the second ten.
NUMBERS = {"norm": 1.0, "noise": 2.0, "epsilon": 8.0, "delta": 1e-5}
OWNERS = ("alice", "bob", "carol")


def private(epsilon: float = 8.0) -> Aggregation:
    return Aggregation(rule=pb.RULE_PRIVATE_MEAN, rule_numbers={**NUMBERS, "epsilon": epsilon})


PRIVATE_JOB = replace(JOB, owners=OWNERS, rounds=100, aggregation=private())


def model(number: int) -> bytes:
    """What round `number` releases, and the next starts from; 0 is the job's first model."""
    return struct.pack("<3f", number, 0.5, -number)


def private_round(number: int, epsilon: float = 8.0) -> RoundContext:
    context = round_of(
        number,
        cohort=OWNERS,
        floor=2,
        job_digest=digest_of(job_spec_to_bytes(PRIVATE_JOB)),
        base_digest=SCHEMA.digest(model(number - 1)),
        aggregation=private(epsilon),
    )
    return replace(context, job=replace(PRIVATE_JOB, aggregation=private(epsilon)))


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    store = Store(tmp_path / "state", Clock())
    body = job_spec_to_bytes(PRIVATE_JOB)
    with store.transaction():
        store.add_job(JobRow("tumours", "coordinator", body))
    with store.first_models.begin(digest_of(body), SCHEMA) as first:
        first.write(memoryview(model(0)))
        first.keep()
    yield Bench(store, [])
    store.close()


def release(
    bench: Bench, recorder: RoundRecorder, number: int, owners: tuple[str, ...] = OWNERS
) -> pb.ReleaseStatement:
    context = private_round(number)
    recorder.check(context)
    left_out = tuple((o, pb.REASON_LEASE_EXPIRED) for o in OWNERS if o not in owners)
    ended = replace(sealed(Rule(model(number)), owners=owners), exclusions=left_out)
    recorder.release(bench.opened(recorder, context), context, ended)
    row = bench.store.round(context.digest)
    return verified_statement(KEY.public_key(), pb.Signed.FromString(row.statement or b""))


def test_a_statement_has_what_the_releases_up_to_its_own_have_told(bench: Bench) -> None:
    recorder = bench.start()
    stated = [release(bench, recorder, number).privacy for number in range(1, 10)]
    assert [privacy.delta for privacy in stated] == [1e-5] * 9
    assert stated[0].epsilon == pytest.approx(2.1657, abs=1e-3)
    assert stated[8].epsilon < 8
    assert all(one.epsilon < next_.epsilon for one, next_ in pairwise(stated))


def test_the_round_that_would_go_beyond_the_budget_is_not_opened(bench: Bench) -> None:
    recorder = bench.start()
    for number in range(1, 10):
        release(bench, recorder, number)
    with pytest.raises(
        WrongState, match=r"than the 9 that counted alice.* epsilon 8\.07"
    ) as caught:
        recorder.check(private_round(10))
    assert caught.value.reason == pb.REASON_BUDGET_SPENT
    recorder.check(private_round(10, epsilon=8.1))


def test_an_owner_spends_only_in_the_releases_that_count_it(bench: Bench) -> None:
    """Twelve rounds in which each owner is left out in turn count each of them in eight, and so do the next."""
    recorder = bench.start()
    stated = []
    for number in range(1, 14):
        there = tuple(owner for place, owner in enumerate(OWNERS) if place != number % 3)
        stated.append(release(bench, recorder, number, there).privacy.epsilon)
    assert (
        stated[1] == stated[2] < stated[3]
    )  # the second release of all three, and the third of two
    assert stated[11] < stated[12] < 8  # eight of each, and the ninth of two of them
    with pytest.raises(WrongState, match="the 9 that counted alice, carol would"):
        recorder.check(private_round(14))


def test_what_was_spent_is_read_off_the_releases_after_a_restart(bench: Bench) -> None:
    for number in range(1, 10):
        release(bench, bench.start(), number)
    with pytest.raises(WrongState, match="budget"):
        bench.start().check(private_round(10))


def test_a_release_that_was_not_recorded_has_spent_nothing(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder, context = bench.start(), private_round(2)
    release(bench, recorder, 1)
    row, ended = bench.opened(recorder, context), sealed(Rule(model(2)), OWNERS)

    def full(*_: object) -> None:
        raise Unavailable("no room", pb.REASON_STORAGE_FAILED)

    with monkeypatch.context() as broken:
        broken.setattr(bench.store, "append", full)
        with pytest.raises(Unavailable):
            recorder.release(row, context, ended)
    assert len(recorded(bench)) == 1
    recorder.release(row, context, ended)
    assert recorded(bench)[-1] == pytest.approx((3.1889, 1e-5), abs=1e-3)  # two releases, not three


@pytest.mark.parametrize(
    ("reason", "told"), [(pb.REASON_NON_FINITE, 4.0113), (pb.REASON_BELOW_FLOOR, 3.1889)]
)
def test_a_round_that_only_told_that_its_result_left_the_range_has_spent_as_a_release(
    bench: Bench, reason: "pb.Reason", told: float
) -> None:
    recorder = bench.start()
    release(bench, recorder, 1)
    context = private_round(2)
    recorder.abort(bench.opened(recorder, context), reason, (("carol", pb.REASON_DEADLINE),))
    again = replace(context, manifest=replace(context.manifest, round=3))
    recorder.release(bench.opened(recorder, again), again, sealed(Rule(model(3)), OWNERS))
    assert recorded(bench)[-1][0] == pytest.approx(told, abs=1e-3)


def recorded(bench: Bench) -> list[tuple[float, float]]:
    """What the ledger says of each release: epsilon and delta."""
    releases = [entry.facts for entry in bench.store.entries(1, 100) if entry.kind == "release"]
    return [(facts["epsilon"], facts["delta"]) for facts in releases]


def test_the_ledger_says_nothing_of_privacy_where_there_is_no_noise(bench: Bench) -> None:
    recorder, plain = bench.start(), round_of(cohort=OWNERS)
    recorder.release(bench.opened(recorder, plain), plain, sealed(owners=OWNERS))
    assert not {"epsilon", "delta"} & set(bench.store.entries(1, 100)[-1].facts)
