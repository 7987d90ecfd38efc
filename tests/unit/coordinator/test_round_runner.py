"""One round between its opening and its collected release: who is told what, and in which order."""

import threading
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from cairn.errors import CairnError, InvalidMessage, WrongState
from cairn.model.schema import Schema, TensorSpec
from cairn.protocol.aggregation import Aggregation, aggregation_to_pb
from cairn.protocol.messages import digest_of, manifest_to_bytes
from cairn.v1 import aggregator_pb2
from cairn.v1 import round_pb2 as pb
from coordinator.aggregator_client import OpenedRound
from coordinator.cohort_selection import SelectedCohort
from coordinator.groups import Sampling
from coordinator.job import Base
from coordinator.release_download import Release
from coordinator.round_runner import RoundRunner
from coordinator.schedule import Step
from tests.unit.owner_node.test_policy import MANIFEST

SCHEMA = Schema.of([TensorSpec("w", "F32", (2,))])
BASE = Base(SCHEMA, memoryview(bytes(8)), MANIFEST.base_digest)
COHORT = list(MANIFEST.cohort)
SELECTED = SelectedCohort(COHORT, frozenset(COHORT), ("zoe",), ())
TRAIN, EVALUATE = Step(4, pb.PHASE_TRAIN), Step(4, pb.PHASE_EVALUATE)
RELEASED = aggregator_pb2.WatchRoundResponse(state=aggregator_pb2.ROUND_STATE_RELEASED)
LOST = pb.Exclusion(owner=COHORT[0], reason=pb.REASON_LEASE_EXPIRED)
ABORTED = aggregator_pb2.WatchRoundResponse(
    state=aggregator_pb2.ROUND_STATE_ABORTED, reason=pb.REASON_BELOW_FLOOR, exclusions=[LOST]
)
STATEMENT = pb.ReleaseStatement(
    federation=MANIFEST.federation,
    job=MANIFEST.job,
    round=MANIFEST.round,
    phase=MANIFEST.phase,
    base_digest=MANIFEST.base_digest,
    weighting=MANIFEST.weighting,
    aggregation=aggregation_to_pb(Aggregation()),
    encoding=MANIFEST.encoding,
    contributors=len(COHORT),
    floor=MANIFEST.floor,
    ledger_number=MANIFEST.ledger_number + 1,
)
SIGNED = pb.Signed(body=b"statement")


def changed(**fields: Any) -> pb.ReleaseStatement:
    statement = pb.ReleaseStatement()
    statement.CopyFrom(STATEMENT)
    for name, value in fields.items():
        if name == "exclusions":
            statement.exclusions.extend(value)
        else:
            setattr(statement, name, value)
    return statement


class Bench:
    """A runner between an aggregator and owners that only note what is asked of them."""

    def __init__(self, ending: aggregator_pb2.WatchRoundResponse = RELEASED) -> None:
        self.did: list[str] = []
        self.events: list[Any] = []
        self.statement = STATEMENT
        self.ending = ending
        self.failure: CairnError | None = None
        self.model = SimpleNamespace(discard=lambda: self.did.append("discard"))
        self.stopping = threading.Event()
        spec = SimpleNamespace(name="tumours", round_deadline_seconds=60)
        sampling = Sampling((tuple(COHORT),), 0, "tumours")
        job: Any = SimpleNamespace(
            spec=spec, spec_bytes=b"spec", sampling=sampling, gather_seconds=1.0
        )
        me: Any = self
        self.runner = RoundRunner(job, me, me, me, me.new_model, self.stopping)

    # The aggregator.

    def open(self, _job: str, step: Step, cohort: list[str], base_digest: bytes) -> OpenedRound:
        self.did.append("open")
        if self.failure is not None and "bring" not in self.did:
            raise self.failure
        manifest = replace(
            MANIFEST, phase=step.phase, cohort=tuple(cohort), base_digest=base_digest
        )
        return OpenedRound(manifest, digest_of(manifest_to_bytes(manifest)), pb.Signed())

    def submit_model(self, _job: str, _digest: bytes, _payload: memoryview) -> None:
        self.did.append("bring")

    def watch(self, _opened: OpenedRound, _seconds: float) -> aggregator_pb2.WatchRoundResponse:
        self.did.append("watch")
        return self.ending

    def collect(self, _digest: bytes, _schema: Schema, _begin: object) -> Release:
        self.did.append("collect")
        model: Any = self.model
        return Release(self.statement, SIGNED, model)

    def abort(self, _opened: OpenedRound) -> None:
        self.did.append("abort")
        raise CairnError("the aggregator cannot be reached")

    # The owners.

    def offer(self, _digest: bytes, _payload: memoryview) -> None:
        self.did.append("offer")

    def invite(self, cohort: tuple[str, ...], _invitation: object) -> None:
        assert list(cohort) == COHORT
        self.did.append("invite")

    def tell(self, _cohort: object, event: Any) -> None:
        self.did.append("tell")
        self.events.append(event)

    def disconnect(self, owners: list[str]) -> set[str]:
        self.did.append(f"disconnect {' '.join(owners)}".strip())
        return set()

    def new_model(self, _schema: Schema) -> None:
        raise AssertionError("the aggregator's fake begins no file")


def test_the_model_is_offered_before_anybody_is_invited_and_collected_before_anybody_is_told() -> (
    None
):
    bench = Bench()
    ended = bench.runner.carry_out(TRAIN, SELECTED, BASE)
    assert bench.did == ["open", "offer", "invite", "watch", "collect", "tell", "disconnect"]
    assert ended.release is not None
    assert ended.left_out == ("zoe",)
    assert bench.events[0].outcome.statement == SIGNED


def test_a_round_without_a_release_is_told_with_its_reason_and_nothing_is_collected() -> None:
    bench = Bench(ABORTED)
    ended = bench.runner.carry_out(TRAIN, SELECTED, BASE)
    assert bench.did == ["open", "offer", "invite", "watch", "tell", f"disconnect {COHORT[0]}"]
    assert (ended.release, ended.reason) == (None, pb.REASON_BELOW_FLOOR)
    outcome = bench.events[0].outcome
    assert outcome.reason == pb.REASON_BELOW_FLOOR
    assert not outcome.HasField("statement")


def test_an_evaluation_that_the_aggregator_does_not_open_is_left_out() -> None:
    bench = Bench()
    bench.failure = WrongState("evaluated before", pb.REASON_COHORT_DIFFERENCE)
    ended = bench.runner.carry_out(EVALUATE, SELECTED, BASE)
    assert (ended.release, ended.reason) == (None, pb.REASON_COHORT_DIFFERENCE)
    assert bench.did == ["open"]


def test_a_training_that_the_aggregator_does_not_open_ends_the_job() -> None:
    bench = Bench()
    bench.failure = WrongState("the job is closed")
    with pytest.raises(WrongState, match="closed"):
        bench.runner.carry_out(TRAIN, SELECTED, BASE)


def test_nobody_is_invited_to_an_open_round_that_starts_from_another_model() -> None:
    bench = Bench()
    opened = OpenedRound(MANIFEST, bytes(32), pb.Signed())
    with pytest.raises(InvalidMessage, match="another model"):
        bench.runner.see_to_end(opened, replace(BASE, digest=bytes(32)))
    assert bench.did == []


@pytest.mark.parametrize(
    "fields",
    [
        {"federation": "other"},
        {"job": "other"},
        {"round": 5},
        {"phase": pb.PHASE_EVALUATE},
        {"base_digest": bytes(32)},
        {"weighting": pb.WEIGHTING_EXAMPLES},
        {"encoding": pb.ENCODING_BF16_DELTAS},
        {"contributors": len(COHORT) - 1},
        {"floor": MANIFEST.floor - 1},
        {"ledger_number": MANIFEST.ledger_number},
        {"draw_seed": bytes(32)},
        {"exclusions": [LOST, LOST], "contributors": len(COHORT) - 1},
        {"exclusions": [pb.Exclusion(owner="zoe")], "contributors": len(COHORT) - 1},
    ],
    ids=str,
)
def test_a_release_that_its_manifest_does_not_allow_is_discarded_and_told_to_nobody(
    fields: dict[str, Any],
) -> None:
    bench = Bench()
    bench.statement = changed(**fields)
    with pytest.raises(InvalidMessage, match="the release statement"):
        bench.runner.carry_out(TRAIN, SELECTED, BASE)
    assert bench.did[-2:] == ["collect", "discard"]


def test_a_release_by_another_rule_than_its_manifest_names_is_discarded() -> None:
    bench = Bench()
    bench.statement = changed()
    bench.statement.aggregation.rule = pb.RULE_SUM
    with pytest.raises(InvalidMessage, match="the release statement"):
        bench.runner.carry_out(TRAIN, SELECTED, BASE)
    assert bench.did[-2:] == ["collect", "discard"]


def test_a_model_that_the_aggregator_has_lost_is_brought_and_the_round_opened_again() -> None:
    bench = Bench()
    bench.failure = WrongState("send it first", pb.REASON_MODEL_MISSING)
    assert bench.runner.carry_out(TRAIN, SELECTED, BASE).release is not None
    assert bench.did[:4] == ["open", "bring", "open", "offer"]


def test_a_round_that_was_opened_while_the_job_was_stopped_is_ended_at_once() -> None:
    bench = Bench(ABORTED)
    bench.stopping.set()
    bench.runner.carry_out(TRAIN, SELECTED, BASE)  # that the abort fails is no reason to fail
    assert bench.did[:3] == ["open", "abort", "offer"]


def test_no_round_is_ended_where_none_is_open() -> None:
    bench = Bench()
    bench.runner.abort_open_round()
    bench.runner.carry_out(TRAIN, SELECTED, BASE)
    bench.runner.abort_open_round()
    assert "abort" not in bench.did
