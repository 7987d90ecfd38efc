"""Which of the coordinators that have registered a job is in charge of it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from aggregator_node.rounds.epochs import Epochs
from aggregator_node.storage.store import Store
from cairn.errors import Fenced, InvalidMessage
from cairn.runtime.clock import Clock

FIRST, SECOND, THIRD = (bytes([number]) * 32 for number in (1, 2, 3))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(tmp_path / "state", Clock())
    yield store
    store.close()


def test_the_process_that_entered_last_is_in_charge_and_the_earlier_ones_are_fenced_for_good(
    store: Store,
) -> None:
    epochs = Epochs(store)
    with store.transaction():
        assert [epochs.enter("tumours", FIRST) for _ in range(2)] == [1, 1]
        assert [epochs.enter("tumours", SECOND) for _ in range(2)] == [2, 2]
        with pytest.raises(Fenced):
            epochs.enter("tumours", FIRST)
        assert epochs.enter("tumours", THIRD) == 3
        assert epochs.enter("another job", FIRST) == 1
    epochs.check("tumours", 3)
    for earlier in (1, 2):
        with pytest.raises(Fenced, match="has registered the job tumours after this one"):
            epochs.check("tumours", earlier)


def test_an_epoch_that_was_never_given_is_no_coordinators(store: Store) -> None:
    epochs = Epochs(store)
    with store.transaction():
        epochs.enter("tumours", FIRST)
    for job, epoch in (("tumours", 0), ("tumours", 2), ("another job", 1)):
        with pytest.raises(InvalidMessage, match=f"the epoch {epoch} of {job} was never given"):
            epochs.check(job, epoch)
