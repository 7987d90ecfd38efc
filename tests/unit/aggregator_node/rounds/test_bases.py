"""Where the model is that a round starts from, and when it has to be brought."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from aggregator_node.rounds.bases import Bases
from aggregator_node.rounds.model_submission import ModelSubmission
from aggregator_node.rounds.upload import RoundContext
from aggregator_node.storage.first_models import MOST_KEPT
from aggregator_node.storage.rows import JobRow, RoundRow, spec_of
from aggregator_node.storage.store import Store
from cairn.errors import Fenced, InvalidMessage, LimitExceeded, Unavailable, WrongState
from cairn.model.validation import Bounds
from cairn.protocol.aggregation import Aggregation
from cairn.protocol.messages import JobSpec, digest_of, job_spec_to_bytes
from cairn.runtime.clock import Clock
from cairn.v1 import round_pb2 as pb
from tests.unit.aggregator_node.rounds.test_upload import CONTEXT

STEPS = Aggregation(optimizer=pb.OPTIMIZER_SGD, optimizer_numbers={"lr": 1.0, "momentum": 0.0})
JOB = replace(CONTEXT.job, aggregation=STEPS)
SCHEMA = JOB.schema
VALUES = bytes(range(SCHEMA.total_bytes))
DIGEST = SCHEMA.digest(VALUES)


class Bench:
    """A store with jobs, all of one coordinator."""

    def __init__(self, path: Path) -> None:
        self.store = Store(path, Clock())
        self.bases = Bases(self.store)
        self.fenced = False
        jobs: Any = SimpleNamespace(in_charge=lambda _coordinator, _epoch, job: self._row(job))
        self.submission = ModelSubmission(jobs, self.bases, self.store)
        self.add(JOB)

    def add(self, job: JobSpec) -> None:
        with self.store.transaction():
            self.store.add_job(JobRow(job.name, "coordinator", job_spec_to_bytes(job)))

    def bring(self, job: str, values: bytes = VALUES, digest: bytes = DIGEST) -> bool:
        """Whether anything had to be brought."""
        with self.submission.receive("coordinator", job, 1, digest) as incoming:
            if incoming is not None:
                incoming.write(memoryview(values))
        return incoming is not None

    def context(self, job: JobSpec = JOB) -> RoundContext:
        body = job_spec_to_bytes(job)
        manifest = replace(
            CONTEXT.manifest,
            job=job.name,
            job_digest=digest_of(body),
            base_digest=DIGEST,
            aggregation=job.aggregation,
        )
        return RoundContext(manifest, spec_of(body), Bounds())

    def _row(self, job: str) -> JobRow:
        if self.fenced:
            raise Fenced("another process has registered the job")
        row = self.store.job(job)
        assert row is not None
        return row


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path / "state")
    yield bench
    bench.store.close()


def test_a_round_whose_optimizer_steps_from_a_model_that_is_not_here_asks_for_it(
    bench: Bench,
) -> None:
    with pytest.raises(WrongState, match="send it first") as refused:
        bench.bases.of(bench.context())
    assert refused.value.reason == pb.REASON_MODEL_MISSING


def test_a_model_that_was_brought_is_the_base_and_is_not_brought_again(bench: Bench) -> None:
    assert [bench.bring(JOB.name), bench.bring(JOB.name)] == [True, False]
    base = bench.bases.of(bench.context())
    assert base is not None
    assert bytes(base) == VALUES


def test_a_job_that_takes_the_plain_mean_needs_no_base_and_takes_none(bench: Bench) -> None:
    plain = replace(JOB, name="plain", aggregation=Aggregation(), encoding=pb.ENCODING_WHOLE)
    bench.add(plain)
    assert bench.bases.of(bench.context(plain)) is None
    with pytest.raises(WrongState, match="needs no model"):
        bench.bring("plain")


@pytest.mark.parametrize(
    ("values", "error"),
    [
        (VALUES[:-1], InvalidMessage),
        (VALUES[:-1] + b"x", InvalidMessage),
        (VALUES + b"x", LimitExceeded),
        (b"", InvalidMessage),
    ],
    ids=["short", "other", "long", "nothing"],
)
def test_other_bytes_than_the_digest_says_are_refused_and_leave_nothing(
    bench: Bench, values: bytes, error: type[Exception]
) -> None:
    with pytest.raises(error):
        bench.bring(JOB.name, values)
    assert list((bench.store.path / "models").iterdir()) == []


OTHER = bytes(SCHEMA.total_bytes)


def open_a_round(bench: Bench) -> None:
    context = bench.context()
    signed = pb.Signed(body=context.body).SerializeToString()
    with bench.store.transaction():
        bench.store.save_round(RoundRow(context.digest, *context.ids, pb.PHASE_TRAIN, signed))


def test_while_a_round_is_open_no_byte_of_another_model_is_taken(bench: Bench) -> None:
    bench.bring(JOB.name)
    open_a_round(bench)
    receiving = bench.submission.receive("coordinator", JOB.name, 1, SCHEMA.digest(OTHER))
    with pytest.raises(WrongState, match=r"a round of .* is open"):
        receiving.__enter__()


def test_a_model_that_was_on_its_way_when_a_round_was_opened_takes_no_place(bench: Bench) -> None:
    bench.bring(JOB.name)
    receiving = bench.submission.receive("coordinator", JOB.name, 1, SCHEMA.digest(OTHER))
    incoming = receiving.__enter__()
    assert incoming is not None
    incoming.write(memoryview(OTHER))
    open_a_round(bench)
    with pytest.raises(WrongState, match=r"a round of .* is open"):
        receiving.__exit__(None, None, None)
    assert bench.bases.of(bench.context()) is not None


def test_models_that_are_brought_at_once_are_not_promised_the_same_room(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = replace(JOB, name="other")
    bench.add(other)
    room = SimpleNamespace(free=(1 << 20) + SCHEMA.total_bytes + 1)
    monkeypatch.setattr("shutil.disk_usage", lambda _path: room)
    with bench.submission.receive("coordinator", JOB.name, 1, DIGEST) as incoming:
        assert incoming is not None
        with pytest.raises(Unavailable, match="no room"):
            bench.bring("other")
        incoming.write(memoryview(VALUES))
        assert bench.bring(
            "other"
        )  # what is written is no promise any more: the disk itself knows of it
    assert bench.store.first_models.missing_bytes == 0


def test_a_model_whose_coordinator_was_fenced_on_the_way_takes_no_place(bench: Bench) -> None:
    receiving = bench.submission.receive("coordinator", JOB.name, 1, DIGEST)
    incoming = receiving.__enter__()
    assert incoming is not None
    incoming.write(memoryview(VALUES))
    bench.fenced = True
    with pytest.raises(Fenced):
        receiving.__exit__(None, None, None)
    assert list((bench.store.path / "models").iterdir()) == []


def test_a_base_that_was_changed_on_the_disk_is_deleted_and_asked_for(bench: Bench) -> None:
    bench.bring(JOB.name)
    path = bench.store.first_models.path(digest_of(job_spec_to_bytes(JOB)))
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(WrongState, match="send it first"):
        bench.bases.of(bench.context())
    assert not path.exists()


def test_the_oldest_models_of_a_coordinator_make_room_for_its_next(bench: Bench) -> None:
    jobs = [replace(JOB, name=f"job-{number}") for number in range(MOST_KEPT + 1)]
    for job in jobs:
        bench.add(job)
        bench.bring(job.name)
    kept = [
        bench.bases.path(j.name, digest_of(job_spec_to_bytes(j)), DIGEST).exists() for j in jobs
    ]
    assert kept == [False, *[True] * MOST_KEPT]


def test_a_start_keeps_the_models_of_jobs_without_a_release_and_nothing_else(bench: Bench) -> None:
    bench.bring(JOB.name)
    path = bench.store.first_models.path(digest_of(job_spec_to_bytes(JOB)))
    stranger = bench.store.first_models.path(bytes(32))
    stranger.write_bytes(b"of a job that is gone")
    (path.parent / ".cairn-0123456789abcdef.tmp").write_bytes(b"half of a model")
    bench.store.clear_left_over_releases()
    assert list(path.parent.iterdir()) == [path]
