"""The state of a job's optimizer on the disk: one with the release that it belongs to, whatever happens."""

import shutil
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest
from blake3 import blake3

from aggregator_node.rounds import recorder as recorder_module
from aggregator_node.rounds.recorder import RoundRecorder
from aggregator_node.rounds.upload import RoundContext
from aggregator_node.storage.rows import JobRow
from aggregator_node.storage.store import Store
from cairn.errors import Unavailable, WrongState
from cairn.protocol.aggregation import Aggregation
from cairn.protocol.messages import JobSpec, digest_of, job_spec_to_bytes
from cairn.runtime.clock import Clock
from cairn.v1 import round_pb2 as pb
from tests.unit.aggregator_node.optimizers.steps import Steps, aggregation_of
from tests.unit.aggregator_node.rounds.test_recorder import (
    OPEN,
    RELEASED,
    Bench,
    Rule,
    round_of,
    sealed,
)
from tests.unit.aggregator_node.rounds.test_upload import JOB, SCHEMA

ADAM = aggregation_of(pb.OPTIMIZER_ADAM, are_gradients=False, lr=0.5)
PLAIN = aggregation_of(pb.OPTIMIZER_SGD, are_gradients=False, lr=0.5)
FIRST_MODEL = struct.pack("<3f", 0.5, -0.25, 8.0)
RESULTS = {number: struct.pack("<3f", number, 0.5 * number, -7.0) for number in range(1, 6)}


class OptimizerBench(Bench):
    """A bench whose only job has an optimizer, and starts from `FIRST_MODEL`."""

    job: JobSpec

    @property
    def job_digest(self) -> bytes:
        return digest_of(job_spec_to_bytes(self.job))

    def round(self, number: int, phase: "pb.Phase" = pb.PHASE_TRAIN) -> RoundContext:
        """A round whose base is the job's last release, or its first model."""
        last = self.store.last_release("tumours")
        base = last.release_digest if last is not None else SCHEMA.digest(FIRST_MODEL)
        changes = {
            "base_digest": base,
            "aggregation": self.job.aggregation,
            "job_digest": self.job_digest,
        }
        return replace(round_of(number, phase, **changes), job=self.job)

    def release(self, recorder: RoundRecorder, number: int) -> RoundContext:
        context = self.round(number)
        recorder.release(self.opened(recorder, context), context, sealed(Rule(RESULTS[number])))
        return context

    def model(self, context: RoundContext) -> bytes:
        content = self.store.release_path(context.digest).read_bytes()
        return content.removeprefix(SCHEMA.header())

    def files_of(self, context: RoundContext) -> set[Path]:
        return {self.store.release_path(context.digest), self.store.optimizer_path(context.digest)}


@contextmanager
def a_bench(path: Path, aggregation: Aggregation) -> Iterator[OptimizerBench]:
    """On a state directory, which is made where there is none."""
    store = Store(path, Clock())
    bench = OptimizerBench(store, [])
    bench.job = replace(JOB, aggregation=aggregation)
    if store.job("tumours") is None:
        row = JobRow("tumours", "coordinator", job_spec_to_bytes(bench.job))
        digest = sha256(row.spec).hexdigest()
        facts = {"job": row.name, "job_digest": digest, "coordinator": row.coordinator}
        with store.transaction():
            store.add_job(row)
            store.append("job", facts)
        with store.first_models.begin(bench.job_digest, SCHEMA) as first:
            first.write(FIRST_MODEL)
            first.keep()
    yield bench
    store.close()


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[OptimizerBench]:
    with a_bench(tmp_path / "state", ADAM) as bench:
        yield bench


def model_after(*numbers: int, aggregation: Aggregation = ADAM) -> bytes:
    """What the steps of these rounds make of the first model, in memory."""
    steps = Steps(SCHEMA, aggregation, FIRST_MODEL)
    for number in numbers:
        steps.go(RESULTS[number])
    return steps.model


def test_rounds_go_on_from_the_state_after_the_last_release_across_restarts(
    tmp_path: Path,
) -> None:
    for number in (1, 2, 3):
        with a_bench(tmp_path / "state", ADAM) as bench:
            model = bench.model(bench.release(bench.start(), number))
        assert model == model_after(*range(1, number + 1))


def test_the_state_lies_beside_its_release_alone_and_its_digest_is_in_the_ledger(
    bench: OptimizerBench,
) -> None:
    recorder = bench.start()
    for number in (1, 2):
        context = bench.release(recorder, number)
        assert bench.files() == bench.files_of(context)
        state = bench.store.optimizer_path(context.digest)
        digest = blake3(state.read_bytes()).digest()
        facts = bench.store.entries(1, 100)[-1].facts
        assert facts["optimizer_digest"] == digest.hex()
        assert bench.store.optimizer_digest(context.digest) == digest


def test_the_first_model_goes_once_there_is_a_release_to_start_from(bench: OptimizerBench) -> None:
    path = bench.store.first_models.path(bench.job_digest)
    recorder = bench.start()
    assert path.exists()
    bench.release(recorder, 1)
    assert not path.exists()


def test_an_evaluation_changes_no_state(bench: OptimizerBench) -> None:
    recorder = bench.start()
    trained = bench.release(recorder, 1)
    evaluation = bench.round(1, pb.PHASE_EVALUATE)
    recorder.release(bench.opened(recorder, evaluation), evaluation, sealed(loss=0.5))
    assert bench.files() == bench.files_of(trained)
    assert bench.store.optimizer_digest(evaluation.digest) is None
    assert bench.model(bench.release(recorder, 2)) == model_after(1, 2)


def test_an_optimizer_that_keeps_nothing_has_no_file(tmp_path: Path) -> None:
    with a_bench(tmp_path / "state", PLAIN) as bench:
        recorder = bench.start()
        for number in (1, 2):
            context = bench.release(recorder, number)
        assert bench.model(context) == model_after(1, 2, aggregation=PLAIN)
        assert bench.files() == {bench.store.release_path(context.digest)}
        assert "optimizer_digest" not in bench.store.entries(1, 100)[-1].facts


POINTS = (
    "the first piece of the result",
    "aggregator.release.file_written",
    "aggregator.release.before_commit",
    "aggregator.release.after_commit",
)


class ReachingRule(Rule):
    """A rule that reaches a point once its result has begun to be written."""

    def __init__(self, result: bytes, reach: Callable[[str], None]) -> None:
        super().__init__(result)
        self._reach = reach

    def result_blocks(self) -> Iterator[memoryview]:
        (values,) = super().result_blocks()
        yield values[:4]
        self._reach(POINTS[0])
        yield values[4:]


@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize("point", POINTS)
def test_a_crash_leaves_the_old_release_with_its_state_or_the_new_one_with_its_own(
    bench: OptimizerBench,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    point: str,
    number: int,
) -> None:
    recorder = bench.start()
    before = [bench.release(recorder, earlier) for earlier in range(1, number)]

    def reach(name: str) -> None:
        if name == point:  # what a process that is killed here leaves on the disk
            shutil.copytree(bench.store.path, tmp_path / "crashed")

    context = bench.round(number)
    rule = ReachingRule(RESULTS[number], reach)
    with monkeypatch.context() as crashing:
        crashing.setattr(recorder_module, "failpoint", reach)
        recorder.release(bench.opened(recorder, context), context, sealed(rule))

    with a_bench(tmp_path / "crashed", ADAM) as again:
        next_process = again.start()
        is_released = point == POINTS[-1]
        kept = [*before, context] if is_released else before
        expected = {path for last in kept[-1:] for path in again.files_of(last)}
        assert again.files() == expected
        numbers = [*range(1, len(kept) + 1), 4]
        assert again.model(again.release(next_process, 4)) == model_after(*numbers)


def test_a_release_that_fails_leaves_the_state_of_the_one_before(
    bench: OptimizerBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = bench.start()
    first = bench.release(recorder, 1)
    with monkeypatch.context() as full:
        full.setattr(bench.store, "save_optimizer_digest", _full)
        with pytest.raises(Unavailable):
            bench.release(recorder, 2)
    assert bench.files() == bench.files_of(first)
    assert bench.model(bench.release(recorder, 3)) == model_after(1, 3)


def _full(_manifest_digest: bytes, _digest: bytes) -> None:
    raise OSError(28, "No space left on device")


def test_without_its_state_an_optimizer_releases_nothing_until_the_file_is_put_back(
    bench: OptimizerBench, tmp_path: Path
) -> None:
    recorder = bench.start()
    first = bench.release(recorder, 1)
    path = bench.store.optimizer_path(first.digest)
    path.rename(tmp_path / "elsewhere")
    second = bench.round(2)
    row = bench.opened(recorder, second)
    with pytest.raises(OSError, match=r"is gone.* put the file back, or begin a new job"):
        recorder.release(row, second, sealed(Rule(RESULTS[2])))
    assert bench.state(second) == (OPEN, 0)
    assert bench.files() == {bench.store.release_path(first.digest)}
    (tmp_path / "elsewhere").rename(path)
    recorder.release(row, second, sealed(Rule(RESULTS[2])))
    assert bench.state(second) == (RELEASED, 0)
    assert bench.model(second) == model_after(1, 2)


def test_no_round_is_opened_whose_optimizer_has_lost_its_state(bench: OptimizerBench) -> None:
    recorder = bench.start()
    path = bench.store.optimizer_path(bench.release(recorder, 1).digest)
    recorder.check(bench.round(2))
    path.unlink()
    with pytest.raises(WrongState, match="has lost what the optimizer of tumours keeps"):
        recorder.check(bench.round(2))
    recorder.check(bench.round(1, pb.PHASE_EVALUATE))


def test_a_state_that_was_changed_on_the_disk_is_not_stepped_from(bench: OptimizerBench) -> None:
    recorder = bench.start()
    path = bench.store.optimizer_path(bench.release(recorder, 1).digest)
    written = path.read_bytes()
    path.write_bytes(written[:-1] + bytes([written[-1] ^ 1]))
    with pytest.raises(OSError, match="is not the optimizer's state that was written there"):
        bench.release(recorder, 2)
    path.write_bytes(written)
    assert bench.model(bench.release(recorder, 3)) == model_after(1, 3)
