"""What a task keeps from round to round: when, for how long, and what the next round begins with."""

import errno
import stat
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from blake3 import blake3
from safetensors.numpy import load_file, save, save_file

from cairn.errors import NotFound, Unavailable
from cairn.model.schema import Schema, TensorSpec
from cairn.protocol.messages import Manifest, digest_of, manifest_to_bytes
from cairn.protocol.statements import commitment_of
from cairn.v1 import round_pb2 as pb
from owner_node import events
from owner_node.training import kept_tensors
from tests.unit.owner_node.round_bench import DIGEST, Bench, invitation, outcome, statement
from tests.unit.owner_node.test_policy import JOB, MANIFEST

KEPT = Schema.of([TensorSpec("norm", "F32", (2,))])
FIRST = np.array([0.5, 0.25], np.float32)
RELEASE = b"n" * 32  # that of the round
NEXT = replace(MANIFEST, round=5, base_digest=RELEASE, previous_release_digest=RELEASE)
AGAIN = replace(MANIFEST, round=5)  # from the base of a round that had no release
EVALUATION = replace(NEXT, round=4, phase=pb.PHASE_EVALUATE)


@pytest.fixture
def keeping(bench: Bench) -> Bench:
    """An owner whose task keeps a tensor, to which each training adds 1, from FIRST on."""
    bench.task.kept_schema = KEPT

    def train() -> None:
        values = np.frombuffer(bench.task.kept, np.float32)
        bench.began_with = values.copy()  # type: ignore[attr-defined]  # for the test alone
        values[:] = values + 1

    bench.task.kept[:] = FIRST.tobytes()
    bench.task.before = train
    return bench


def files(bench: Bench) -> dict[str, list[float]]:
    """What is kept on the disk, by the name of the file."""
    found = (bench.state.path / "kept").glob("*")
    return {path.name: load_file(path)["norm"].tolist() for path in found}


def digest(manifest: Manifest) -> bytes:
    return digest_of(manifest_to_bytes(manifest))


def name_of(manifest_digest: bytes, values: tuple[float, float] = (1.5, 1.25)) -> str:
    """With the BLAKE3 of the file that the safetensors library itself writes."""
    tensors = {"norm": np.array(values, np.float32)}
    return f"{manifest_digest.hex()}.{blake3(save(tensors)).hexdigest()}.safetensors"


def released(bench: Bench, *, counted: bool = True) -> None:
    commitments = [commitment_of(bench.stub.receipts[DIGEST])] if counted else []
    bench.stub.statements[DIGEST] = statement(commitments)
    bench.rounds.take_in(outcome(bench.stub.statements[DIGEST]))


def begins_with(bench: Bench, manifest: Manifest = NEXT) -> list[float] | None:
    """What a round begins with; None where its model is as it was built."""
    bench.task.works.clear()
    bench.rounds.take_part(invitation(manifest))
    (work,) = bench.task.works
    assert work.kept == KEPT
    began: np.ndarray[Any, Any] = vars(bench)["began_with"]
    return began.tolist() if work.begins_with_kept else None


def test_what_a_training_made_of_it_is_on_the_disk_before_the_update_is_recorded_as_sent(
    keeping: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[dict[str, list[float]]] = []
    record = keeping.ledger.record

    def recording(kind: str, facts: dict[str, object]) -> None:
        if kind == "sent":
            seen.append(files(keeping))
        record(kind, facts)

    monkeypatch.setattr(keeping.ledger, "record", recording)
    keeping.rounds.take_part(invitation())
    assert seen == [{name_of(DIGEST): [1.5, 1.25]}]
    (path,) = (keeping.state.path / "kept").iterdir()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_the_next_round_of_the_job_and_an_evaluation_begin_with_what_was_counted(
    keeping: Bench,
) -> None:
    assert begins_with(keeping, MANIFEST) is None
    released(keeping)
    keeping.task.kept[:] = bytes(8)
    assert begins_with(keeping, EVALUATION) == [1.5, 1.25]
    assert files(keeping) == {name_of(DIGEST): [1.5, 1.25]}  # an evaluation keeps nothing
    keeping.task.kept[:] = bytes(8)
    assert begins_with(keeping) == [1.5, 1.25]
    assert files(keeping) == {
        name_of(DIGEST): [1.5, 1.25],
        name_of(digest(NEXT), (2.5, 2.25)): [2.5, 2.25],
    }


def test_the_aggregator_is_asked_at_once_whether_the_round_before_counted(keeping: Bench) -> None:
    """Its outcome was lost, and it was asked a moment ago when the round was open."""
    keeping.rounds.take_part(invitation())
    keeping.rounds.settle()
    receipt = keeping.stub.receipts[DIGEST]
    keeping.stub.statements[DIGEST] = statement([commitment_of(receipt)])
    assert begins_with(keeping) == [1.5, 1.25]


def test_a_round_in_which_that_cannot_be_known_is_left(keeping: Bench) -> None:
    keeping.rounds.take_part(invitation())
    keeping.stub.statement_error = Unavailable("not there")
    keeping.rounds.take_part(invitation(NEXT))
    assert len(keeping.task.works) == 1
    facts = keeping.facts("declined")
    assert facts["reason"] == "FETCH_FAILED"
    assert facts["why"].startswith("it is not known which kept tensors to go on with")


@pytest.mark.parametrize("end", ["left out", "aborted"])
def test_a_round_that_did_not_count_this_owner_is_as_if_it_had_not_been(
    keeping: Bench, end: str
) -> None:
    keeping.rounds.take_part(invitation())
    if end == "left out":
        released(keeping, counted=False)
        later = NEXT
    else:
        later = AGAIN
        keeping.stub.statement_error = NotFound("no release", pb.REASON_ROUND_ENDED)
        keeping.rounds.take_in(outcome(None))
        keeping.stub.statement_error = None
    assert begins_with(keeping, later) is None
    assert list(files(keeping)) == [name_of(digest(later), (2.5, 2.25))]


def test_a_training_of_which_nothing_was_sent_keeps_nothing(keeping: Bench) -> None:
    keeping.task.update[:4] = np.float32("nan").tobytes()
    keeping.rounds.take_part(invitation())
    assert keeping.kinds() == ["joined", "declined"]
    assert list(files(keeping)) == [name_of(DIGEST)]
    keeping.task.update[:4] = np.float32(1).tobytes()
    assert begins_with(keeping, AGAIN) is None
    assert list(files(keeping)) == [name_of(digest(AGAIN), (2.5, 2.25))]


def test_a_node_removes_at_its_start_what_no_job_goes_on_with_and_nothing_of_others(
    keeping: Bench,
) -> None:
    keeping.rounds.take_part(invitation())
    folder = keeping.state.path / "kept"
    for name in (name_of(b"x" * 32), ".cairn-0123456789abcdef.tmp", "notes.txt", "a.safetensors"):
        (folder / name).write_bytes(b"")
    rounds, tell = keeping.ledger.past.kept_rounds, keeping.events.append
    kept_tensors.KeptTensors(keeping.state.path, rounds, keeping.outcomes.settle_job, tell)
    left = {path.name for path in folder.iterdir()}
    assert left == {name_of(DIGEST), "notes.txt", "a.safetensors"}


def put(path: Path, tensors: dict[str, Any]) -> Path:
    """In place of the file another one that is whole, as of a task that was changed."""
    path.unlink()
    other = path.with_name(f"{DIGEST.hex()}.{blake3(save(tensors)).hexdigest()}.safetensors")
    save_file(tensors, other)
    return other


@pytest.mark.parametrize("damage", ["another shape", "another name", "cut off", "one bit"])
def test_a_file_that_does_not_fit_is_refused_with_its_name_and_the_command_that_drops_it(
    keeping: Bench, damage: str
) -> None:
    keeping.rounds.take_part(invitation())
    released(keeping)
    path = keeping.state.path / "kept" / name_of(DIGEST)
    whole = path.read_bytes()
    match damage:
        case "another shape":
            path = put(path, {"norm": np.zeros(3, np.float32)})
        case "another name":
            path = put(path, {"other": np.zeros(2, np.float32)})
        case "one bit":
            path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        case _:
            path.write_bytes(whole[:-1])
    keeping.rounds.take_part(invitation(NEXT))
    facts = keeping.facts("declined")
    assert (facts["reason"], len(keeping.task.works)) == ("JOB_REFUSED", 1)
    assert str(path) in facts["why"]
    assert "run `cairn reset --kept OWNER.toml tumours`" in facts["why"]


def test_what_was_dropped_begins_anew_which_is_told(keeping: Bench) -> None:
    keeping.rounds.take_part(invitation())
    released(keeping)
    path = keeping.state.path / "kept" / name_of(DIGEST)
    path.unlink()
    assert begins_with(keeping) is None
    gone = path.with_name(f"{DIGEST.hex()}.*.safetensors")
    assert events.KeptTensorsGone("tumours", 5, gone) in keeping.events


def test_a_full_disk_costs_the_round_and_is_no_failure_of_the_task(
    keeping: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(kept_tensors, "write_atomically", full)
    keeping.rounds.take_part(invitation())
    assert keeping.stub.submitted == []
    assert "cannot be written to" in keeping.facts("declined")["why"]
    assert keeping.ledger.past.budgets.failures(JOB.task) == 0


def test_nothing_of_it_is_in_the_ledger_or_in_what_is_sent(keeping: Bench) -> None:
    keeping.rounds.take_part(invitation())
    assert keeping.facts("sent")["tensors"] == 1
    assert keeping.facts("sent")["bytes"] == 8
    assert not any("norm" in str(entry.facts) for entry in keeping.entries())
