"""What is kept of a finished update: when, for how long, and what it is good for after a restart."""

import errno
import stat
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cairn.errors import NotFound
from cairn.model.schema import Schema, TensorSpec
from cairn.model.update_encoding import UpdateLayout
from cairn.protocol.messages import Manifest, digest_of, manifest_to_bytes
from cairn.v1 import round_pb2 as pb
from owner_node import events
from owner_node.updates import spool
from owner_node.updates.spool import UpdateSpool
from tests.unit.owner_node.round_bench import (
    DIGEST,
    UPDATE,
    Bench,
    invitation,
    outcome,
    statement,
)
from tests.unit.owner_node.test_policy import JOB, MANIFEST

ROUND, OTHER = b"r" * 32, b"o" * 32
LAYOUT = UpdateLayout(Schema.of([TensorSpec("w", "F32", (300_000,))]), pb.ENCODING_WHOLE)
PAYLOAD = np.arange(300_000, dtype=np.float32).tobytes()
SAID = LAYOUT.digest(PAYLOAD)
FULL = OSError(errno.ENOSPC, "No space left on device")


def keep(kept: UpdateSpool, manifest_digest: bytes = ROUND, payload: bytes = PAYLOAD) -> Path:
    with kept.writer(manifest_digest) as keeping:
        keeping.write(memoryview(payload))
    return kept.path / f"{manifest_digest.hex()}.update"


def files(path: Path) -> list[str]:
    return sorted(file.name for file in path.iterdir())


def found(kept: UpdateSpool, layout: UpdateLayout = LAYOUT, said: bytes = SAID) -> bytes | None:
    payload = kept.find(ROUND, layout, said)
    return None if payload is None else bytes(payload)


def ignored(_event: events.Event) -> None:
    """Nobody watches this folder."""


@pytest.fixture
def kept(tmp_path: Path) -> UpdateSpool:
    return UpdateSpool(tmp_path, lambda digest: digest == ROUND, ignored)


def test_a_kept_update_is_the_payload_and_nobody_elses_to_read(kept: UpdateSpool) -> None:
    path = keep(kept)
    assert path.read_bytes() == PAYLOAD
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert files(kept.path) == [path.name]
    assert found(kept) == PAYLOAD


def test_an_update_without_bytes_is_kept_too(kept: UpdateSpool) -> None:
    layout = UpdateLayout(Schema.of([TensorSpec("w", "F32", (0,))]), pb.ENCODING_WHOLE)
    keep(kept, payload=b"")
    assert found(kept, layout, layout.digest(b"")) == b""


@pytest.mark.parametrize("damage", ["a bit", "its end", "more", "all", "another's"])
def test_a_damaged_file_is_not_found(kept: UpdateSpool, damage: str) -> None:
    path, said = keep(kept), SAID
    match damage:
        case "a bit":
            path.write_bytes(PAYLOAD[:-1] + bytes([PAYLOAD[-1] ^ 1]))
        case "its end":
            path.write_bytes(PAYLOAD[:-1])
        case "more":
            path.write_bytes(PAYLOAD + b"\0")
        case "all":
            path.unlink()
        case _:
            said = LAYOUT.digest(PAYLOAD[::-1])
    assert found(kept, said=said) is None


def test_another_rounds_file_is_never_found(kept: UpdateSpool) -> None:
    keep(kept, OTHER)
    assert found(kept) is None


def test_at_the_start_all_of_its_own_is_removed_but_what_may_have_to_leave_again(
    kept: UpdateSpool,
) -> None:
    path = keep(kept)
    strangers = ["no-digest.update", "notes.txt", ROUND.hex()]
    for name in (f"{OTHER.hex()}.update", ".cairn-0123456789abcdef.tmp", *strangers):
        (kept.path / name).write_bytes(PAYLOAD)
    again = UpdateSpool(kept.path.parent, lambda digest: digest == ROUND, ignored)
    assert files(kept.path) == sorted([path.name, *strangers])
    assert found(again) == PAYLOAD
    UpdateSpool(kept.path.parent, lambda _: False, ignored)
    assert files(kept.path) == sorted(strangers)


@pytest.mark.parametrize("fails", ["owner_node.updates.spool._write_all", "os.fsync"])
def test_on_a_full_disk_nothing_is_kept_and_nothing_raised(
    kept: UpdateSpool, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    def full(*_: Any) -> int:
        raise FULL

    monkeypatch.setattr(fails, full)
    with kept.writer(ROUND) as keeping:
        keeping.write(memoryview(PAYLOAD))
        keeping.wait_until_placed()
        keeping.wait_until_durable()
    assert files(kept.path) == []


# In a whole round.


class KilledError(BaseException):
    """The node dies here."""


def die(*_: Any) -> None:
    raise KilledError


def killed(path: Path, manifest: Manifest = MANIFEST) -> None:
    """An owner that dies after it has recorded its update as sent."""
    bench = Bench(path)
    bench.stub.submit = die  # type: ignore[method-assign, assignment]  # the node dies in it
    with pytest.raises(KilledError):
        bench.rounds.take_part(invitation(manifest))
    assert bench.kinds() == ["joined", "sent"]
    bench.state.close()


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    """The owner after its restart; its task would now bring another update."""
    killed(tmp_path)
    made = Bench(tmp_path)
    made.task.update[:] = np.array([5.0, 6.0], np.float32).tobytes()
    yield made
    made.state.close()


def test_after_a_restart_the_same_update_is_pushed_and_nothing_trained(bench: Bench) -> None:
    bench.rounds.take_part(invitation())
    assert bench.stub.log == ["asked for the statement", "joined", "submitted"]
    assert bench.task.works == []
    assert bench.kinds() == ["joined", "sent", "sent again", "receipt"]
    digest = JOB.schema.digest(UPDATE.tobytes()).hex()
    assert bench.facts("sent")["payload_digest"] == digest
    assert bench.facts("sent again")["payload_digest"] == digest
    (header,) = bench.stub.submitted
    assert (header.examples, dict(header.metrics)) == (5, {"loss": 0.5})


def test_after_a_restart_an_evaluation_says_the_same_and_is_not_made_again(tmp_path: Path) -> None:
    manifest = replace(MANIFEST, phase=pb.PHASE_EVALUATE)
    killed(tmp_path, manifest)
    bench = Bench(tmp_path)
    bench.rounds.take_part(invitation(manifest))
    bench.state.close()
    assert bench.stub.log == ["asked for the statement", "joined", "submitted"]
    assert bench.task.works == []


@pytest.mark.parametrize("lost", [True, False])
def test_an_update_that_is_recorded_and_lost_is_not_replaced_by_another(
    bench: Bench,
    lost: bool,  # noqa: FBT001 - a parameter of the test
) -> None:
    (path,) = bench.kept.path.iterdir()
    if lost:
        path.unlink()
    else:
        path.write_bytes(bytes(8))
    bench.rounds.take_part(invitation())
    assert bench.stub.log == [
        "asked for the statement",
        "joined",
        "declined REASON_UPDATE_LOST",
    ]
    assert bench.task.works == []


def test_where_nothing_was_recorded_it_is_trained_again(tmp_path: Path) -> None:
    first = Bench(tmp_path)
    record = first.ledger.record

    def dying(kind: str, facts: dict[str, object]) -> None:
        if kind == "sent":
            raise KilledError
        record(kind, facts)

    first.ledger.record = dying  # type: ignore[method-assign, assignment]  # the node dies in it
    with pytest.raises(KilledError):
        first.rounds.take_part(invitation())
    assert len(files(first.kept.path)) == 1  # in its place before it is recorded
    first.state.close()
    bench = Bench(tmp_path)
    assert files(bench.kept.path) == []
    bench.rounds.take_part(invitation())
    bench.state.close()
    assert bench.stub.log == ["joined", "submitted"]
    assert len(bench.task.works) == 1


def test_the_file_is_on_the_disk_before_the_commit_leaves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench(tmp_path)
    monkeypatch.setattr(spool, "sync_directory", lambda _: bench.stub.log.append("on the disk"))
    bench.rounds.take_part(invitation())
    bench.state.close()
    assert bench.stub.log == ["joined", "on the disk", "submitted"]


def test_a_full_disk_does_not_cost_the_round(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise FULL

    bench = Bench(tmp_path)
    monkeypatch.setattr(spool, "_write_all", full)
    bench.rounds.take_part(invitation())
    assert bench.kinds() == ["joined", "sent", "receipt"]
    assert files(bench.kept.path) == []
    (told,) = [event for event in bench.events if isinstance(event, events.UpdateNotKept)]
    assert told.trouble is FULL
    bench.state.close()


def test_the_file_is_removed_once_the_update_was_counted(bench: Bench) -> None:
    bench.rounds.take_part(invitation())
    assert len(files(bench.kept.path)) == 1
    bench.rounds.take_in(outcome(statement([])))
    assert files(bench.kept.path) == []


def test_the_file_is_removed_once_the_round_has_ended_without_a_release(bench: Bench) -> None:
    bench.stub.statement_error = NotFound("ended without a release", pb.REASON_ROUND_ENDED)
    bench.rounds.settle()  # also where nobody tells this owner of the end
    assert files(bench.kept.path) == []


def test_the_file_is_removed_once_a_later_round_has_begun(bench: Bench) -> None:
    later = replace(MANIFEST, round=5)
    bench.rounds.take_part(invitation(later))
    digest = digest_of(manifest_to_bytes(later))
    assert files(bench.kept.path) == [f"{digest.hex()}.update"]
    assert DIGEST in bench.ledger.past.unsettled  # it still asks how that round ended
