"""What is recorded of a round's end, and what is said where it cannot be."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from aggregator_node.aggregation.mean import Mean
from aggregator_node.rounds import recorder as module
from aggregator_node.rounds.disclosure import ReleaseOverlap
from aggregator_node.rounds.recorder import RoundRecorder
from aggregator_node.rounds.results import SealedRound
from aggregator_node.rounds.upload import RoundContext
from aggregator_node.storage.rows import RoundRow
from aggregator_node.storage.store import Store
from cairn.errors import Unavailable, WrongState
from cairn.model.safetensors_reader import read_model
from cairn.runtime.clock import Clock
from cairn.v1 import aggregator_pb2
from cairn.v1 import round_pb2 as pb
from tests.unit.aggregator_node.aggregation.whole import add_whole
from tests.unit.aggregator_node.rounds.test_upload import TERMS

DIGEST = b"d" * 32
OWNERS = ("alice", "bob", "carol")


@dataclass(frozen=True)
class Books:
    """A recorder with its store, and one open round of three owners."""

    store: Store
    recorder: RoundRecorder
    terms: RoundContext
    row: RoundRow

    def sealed(self) -> SealedRound:
        schema = self.terms.job.schema
        mean = Mean(schema)
        add_whole(mean, schema, bytes(schema.total_bytes), 1)
        commitments = tuple(bytes([number]) * 32 for number in range(len(OWNERS)))
        return SealedRound(mean, OWNERS, commitments, {"loss": 0.5}, ())

    def release(self) -> None:
        self.recorder.release(self.row, self.terms, self.sealed())

    def kinds(self) -> list[str]:
        return [entry.kind for entry in self.store.entries(1, 100)]


@pytest.fixture(params=[pb.PHASE_TRAIN, pb.PHASE_EVALUATE], ids=["training", "evaluation"])
def books(tmp_path: Path, request: Any) -> Iterator[Books]:
    manifest = replace(TERMS.manifest, phase=request.param, cohort=OWNERS, floor=3)
    terms = RoundContext(manifest, replace(TERMS.job, owners=OWNERS), TERMS.bounds)
    store = Store(tmp_path / "state", Clock())
    overlap = ReleaseOverlap(any_base=False)
    recorder = RoundRecorder(store, Ed25519PrivateKey.generate(), Clock(), overlap)
    row = RoundRow(DIGEST, manifest.job, manifest.round, manifest.phase, b"the signed manifest")
    recorder.open(row, OWNERS)
    yield Books(store, recorder, terms, row)
    store.close()


def test_a_release_is_recorded_with_its_statement_and_a_training_has_its_model(
    books: Books,
) -> None:
    books.release()
    assert books.kinds() == ["open", "release"]
    row = books.store.round(DIGEST)
    assert row.state == aggregator_pb2.ROUND_STATE_RELEASED
    assert row.statement is not None
    path = books.store.release_path(DIGEST)
    assert path.exists() == books.terms.manifest.trains
    if books.terms.manifest.trains:
        assert not np.frombuffer(read_model(path)[1], np.uint8).any()


def test_what_kept_a_release_from_being_recorded_is_told_and_leaves_no_model(
    books: Books, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module.RoundRecorder, "_state", full)
    with pytest.raises(Unavailable, match="its disk may be full"):
        books.release()
    monkeypatch.undo()
    assert books.kinds() == ["open"]
    assert list((books.store.path / "releases").iterdir()) == []
    books.release()  # nothing of it stands in the way of the next


def test_a_round_ends_once(books: Books) -> None:
    books.recorder.abort(books.row, pb.REASON_BELOW_FLOOR, ())
    with pytest.raises(WrongState, match="recorded already"):
        books.recorder.abort(books.row, pb.REASON_ABORTED, ())
    with pytest.raises(WrongState, match="recorded already"):
        books.release()
    assert books.kinds() == ["open", "abort"]
    assert books.recorder.end_of(books.row) == pb.REASON_BELOW_FLOOR
    assert list((books.store.path / "releases").iterdir()) == []


def test_fewer_owners_than_the_floor_are_never_released(books: Books) -> None:
    few = replace(books.sealed(), contributors=OWNERS[:2])
    with pytest.raises(AssertionError, match="fewer owners than the floor"):
        books.recorder.release(books.row, books.terms, few)
    assert books.kinds() == ["open"]
