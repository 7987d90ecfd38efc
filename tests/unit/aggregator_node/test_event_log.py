"""What the log says of each event."""

import pytest
from structlog.testing import capture_logs

from aggregator_node import event_log
from aggregator_node.events import (
    Event,
    JobRegistered,
    MetricsLeftOut,
    OwnerDeclined,
    RecordFailed,
    ReleaseFailed,
    RoundAborted,
    RoundEvent,
    RoundOpened,
    RoundReleased,
    SumsRefused,
    UpdateAccepted,
)
from cairn.errors import InvalidMessage, LimitExceeded, Unavailable, WrongState
from cairn.v1 import round_pb2 as pb

OF = "tumours", 3
BUG = InvalidMessage("nobody expects this")
FULL = Unavailable("the disk is full", pb.REASON_STORAGE_FAILED)
# The order of the keys is the order in which a line has them.
LINES: list[tuple[Event, str, str, dict[str, object]]] = [
    (
        JobRegistered("tumours", "model-owner", 2),
        "info",
        "job registered",
        {"job": "tumours", "coordinator": "model-owner", "epoch": 2},
    ),
    (RoundOpened(*OF, 5), "info", "round opened", {"job": "tumours", "round": 3, "cohort": 5}),
    (
        OwnerDeclined(*OF, "alice", pb.REASON_TASK_FAILED),
        "info",
        "declined",
        {"job": "tumours", "round": 3, "owner": "alice", "reason": "TASK_FAILED"},
    ),
    (
        UpdateAccepted(*OF, "alice"),
        "info",
        "accepted",
        {"job": "tumours", "round": 3, "owner": "alice"},
    ),
    (
        SumsRefused(*OF, "alice", "no memory"),
        "error",
        "round cannot go on",
        {"job": "tumours", "round": 3, "owner": "alice", "error": "no memory"},
    ),
    (
        MetricsLeftOut(*OF),
        "info",
        "metrics are left out: an earlier release of this base has metrics that overlap with them",
        {"job": "tumours", "round": 3},
    ),
    (
        RoundReleased(*OF, 4),
        "info",
        "released",
        {"job": "tumours", "round": 3, "contributors": 4},
    ),
    (
        RoundAborted(*OF, pb.REASON_BELOW_FLOOR),
        "warning",
        "round aborted",
        {"job": "tumours", "round": 3, "reason": "BELOW_FLOOR"},
    ),
    *(
        (
            ReleaseFailed(*OF, error),
            "error",
            "round not released",
            {"job": "tumours", "round": 3, "error": str(error)},
        )
        for error in (
            LimitExceeded("infinite"),
            WrongState("overlaps"),
            FULL,
            OSError(28, "No space"),
        )
    ),
    (
        ReleaseFailed(*OF, BUG),
        "error",
        "round not released",
        {"job": "tumours", "round": 3, "exc_info": BUG},
    ),
    (
        RecordFailed(*OF, FULL),
        "error",
        "round could not be recorded",
        {"job": "tumours", "round": 3, "reason": "the disk is full"},
    ),
    (
        RecordFailed(*OF, BUG),
        "error",
        "round could not be recorded",
        {"job": "tumours", "round": 3, "exc_info": BUG},
    ),
]


@pytest.mark.parametrize(("event", "level", "text", "values"), LINES)
def test_a_line_says_what_happened_to_which_job_and_round(
    event: Event, level: str, text: str, values: dict[str, object]
) -> None:
    with capture_logs() as lines:
        event_log.write(event)
    assert [list(line.items()) for line in lines] == [
        [*values.items(), ("event", text), ("log_level", level)]
    ]


def test_every_event_has_its_line() -> None:
    logged = {type(event) for event, *_ in LINES}
    assert logged == {JobRegistered, *RoundEvent.__subclasses__()}
