"""What the coordinator says of owners that were not counted."""

import pytest

from cairn.v1 import round_pb2 as pb
from coordinator.console import show
from coordinator.events import OwnerNotCounted


@pytest.mark.parametrize(
    ("reason", "line"),
    [
        (
            pb.REASON_NOT_COUNTED,
            (
                "Round 2: bob was not counted (NOT_COUNTED): its task failed there or its update was refused; only"
                " that owner is told why\n"
            ),
        ),
        (
            pb.REASON_FAILURES_SPENT,
            (
                "Round 2: bob was not counted (FAILURES_SPENT): it was not counted as often as its file allows: its"
                " operator has to look into that and run `cairn reset`\n"
            ),
        ),
        (pb.REASON_LEASE_EXPIRED, "Round 2: bob was not counted (LEASE_EXPIRED)\n"),
    ],
)
def test_a_word_that_tells_little_is_explained(
    reason: "pb.Reason", line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    show(OwnerNotCounted(2, "bob", reason))
    assert capsys.readouterr().out == line
