"""The lines that an owner's rounds leave in its log: people search for them, and tools read their keys."""

from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from cairn.errors import CairnError, InvalidMessage, NotFound, Unavailable, WrongState
from cairn.v1 import round_pb2 as pb
from owner_node import events
from owner_node.event_log import log_event
from owner_node.invitation import Declined
from owner_node.records.history import Unsettled

IDS = ("tumours", 4)
GONE = Unavailable("nothing listens there")
NO = InvalidMessage("no")
BUG = ValueError("a bug")
DIGEST = b"\xab" * 32
HEX = "ab" * 32
OPEN = Unsettled(*IDS)

# The level, the event and the other fields of the line, in their order.
LINES: list[tuple[events.Event, str, str, dict[str, Any]]] = [
    (events.InvitationRefused(NO), "error", "invitation refused", {"reason": "no"}),
    (
        events.InvitationUnreadable(BUG),
        "error",
        "the invitation could not be read",
        {"exc_info": BUG},
    ),
    (
        events.OtherJobAwaited("lungs"),
        "info",
        "waiting for the end of a round of another job",
        {"job": "lungs"},
    ),
    (
        events.Declined(*IDS, Declined("the floor is 2", pb.REASON_FLOOR_TOO_LOW)),
        "warning",
        "declined",
        {"job": "tumours", "round": 4, "why": "FLOOR_TOO_LOW", "reason": "the floor is 2"},
    ),
    (
        events.NotDeclined(GONE),
        "warning",
        "could not decline",
        {"reason": "nothing listens there"},
    ),
    (
        events.LeftOut(*IDS, NO),
        "warning",
        "left out of the round",
        {"job": "tumours", "round": 4, "reason": "no"},
    ),
    (
        events.Joined(*IDS, "gradients, mean, sgd (lr = 0.1, momentum = 0)"),
        "info",
        "taking part",
        {"job": "tumours", "round": 4, "updates": "gradients, mean, sgd (lr = 0.1, momentum = 0)"},
    ),
    (
        events.AcceptedBefore(*IDS),
        "info",
        "update was accepted before",
        {"job": "tumours", "round": 4},
    ),
    (
        events.LeaseNotRenewed(GONE),
        "warning",
        "the lease could not be renewed, trying again",
        {"trouble": "nothing listens there"},
    ),
    (
        events.RoundEndedMeanwhile(WrongState("it is over")),
        "warning",
        "the round has ended without this owner",
        {"reason": "it is over"},
    ),
    (
        events.DeadlinePassed(),
        "warning",
        "the round's deadline has passed: the work on it is ended",
        {},
    ),
    (
        events.Queued(*IDS, 3),
        "info",
        "waiting in line to push",
        {"job": "tumours", "round": 4, "place": 3},
    ),
    (
        events.RoundFailed(*IDS, CairnError("odd")),
        "error",
        "round failed",
        {"job": "tumours", "round": 4, "reason": "odd"},
    ),
    (
        events.RoundCrashed(*IDS, BUG),
        "error",
        "round failed",
        {"job": "tumours", "round": 4, "exc_info": BUG},
    ),
    (
        events.FailureCounted("mri", 2),
        "warning",
        (
            "a round failed for a cause that may depend on this owner's data: after max_failures of them the task is"
            " declined until `cairn reset`"
        ),
        {"task": "mri", "failures": 2},
    ),
    (
        events.UnlistedMetricsDropped(*IDS, ["patients"]),
        "warning",
        "metrics that this owner's file does not list are dropped",
        {"job": "tumours", "round": 4, "metrics": ["patients"]},
    ),
    (
        events.NewMetricsDropped(*IDS, ["loss"]),
        "warning",
        "metrics that the task did not report at first are dropped until `cairn reset`",
        {"job": "tumours", "round": 4, "metrics": ["loss"]},
    ),
    (
        events.PrivacySpent(*IDS, 1.7182, 3.0, 1e-5),
        "info",
        "private training begins, and is counted whatever becomes of it",
        {"job": "tumours", "round": 4, "epsilon": "1.72 of 3", "delta": 1e-5},
    ),
    (
        events.PushedAgain(*IDS),
        "info",
        "the finished update is pushed again, without training",
        {"job": "tumours", "round": 4},
    ),
    (
        events.UpdateRefused(*IDS, NO),
        "error",
        "update refused",
        {"job": "tumours", "round": 4, "reason": "no"},
    ),
    (
        events.UpdateAccepted(*IDS, 8, DIGEST, clipped=True),
        "info",
        "update accepted",
        {"job": "tumours", "round": 4, "bytes": 8, "digest": HEX, "clipped": True},
    ),
    (events.ReceiptNotKept(NO), "error", "a receipt could not be kept", {"reason": "no"}),
    (events.ReceiptRefused(NO), "warning", "the receipt could not be fetched", {"reason": "no"}),
    (
        events.ReceiptNotFetched(*IDS, GONE),
        "warning",
        "the receipt was not fetched",
        {"job": "tumours", "round": 4, "reason": "nothing listens there"},
    ),
    (events.DecisionNotRecorded(NO), "error", "a decision could not be recorded", {"reason": "no"}),
    (
        events.UpdateUnreadable(Path("updates/ab.update"), OSError("gone")),
        "error",
        "the finished update cannot be read",
        {"file": "updates/ab.update", "trouble": "gone"},
    ),
    (
        events.UpdateDamaged(Path("updates/ab.update")),
        "error",
        "the finished update is damaged",
        {"file": "updates/ab.update"},
    ),
    (
        events.UpdateNotKept(Path("updates/ab.update"), OSError("full")),
        "warning",
        "the finished update cannot be kept: if this node dies in this round, it has to leave it",
        {"file": "updates/ab.update", "trouble": "full"},
    ),
    (
        events.KeptTensorsGone(*IDS, Path("kept/ab.safetensors")),
        "warning",
        "what the task kept of this job is not there: the round begins with what its model() returns",
        {"job": "tumours", "round": 4, "file": "kept/ab.safetensors"},
    ),
    (
        events.FileNotRemoved(Path("updates/ab.update"), OSError("no")),
        "error",
        "a file cannot be removed",
        {"file": "updates/ab.update", "trouble": "no"},
    ),
    (
        events.GivenUp(pb.REASON_ABORTED),
        "warning",
        "the coordinator gave up a round",
        {"reason": "ABORTED"},
    ),
    (
        events.GivenUp(12345),
        "warning",
        "the coordinator gave up a round",
        {"reason": "unknown reason 12345"},
    ),
    (
        events.StatementForged(NO),
        "error",
        "the coordinator sent a statement that is not the aggregator's",
        {"why": "no"},
    ),
    (
        events.EndAwaited(),
        "info",
        "waiting for the end of a round, whatever the coordinator says",
        {},
    ),
    (
        events.AggregatorNotAsked(GONE),
        "warning",
        "the statement of a round was not fetched",
        {"reason": "nothing listens there"},
    ),
    (
        events.EndNotTold(OPEN, DIGEST, NotFound("no such round")),
        "warning",
        "the statement of a round was not fetched",
        {"job": "tumours", "round": 4, "reason": "no such round"},
    ),
    (
        events.EndNotTold(None, DIGEST, NO),
        "error",
        "the aggregator's answer on a round is not good",
        {"manifest": HEX, "reason": "no"},
    ),
    (
        events.EndNotTold(OPEN, DIGEST, InvalidMessage("behind", pb.REASON_ROLLED_BACK)),
        "error",
        "THE AGGREGATOR'S STATE WAS REPLACED",
        {"job": "tumours", "round": 4, "reason": "behind"},
    ),
    (
        events.CountNotKnown(GONE),
        "warning",
        "the receipt of a round was not fetched",
        {"reason": "nothing listens there"},
    ),
    (
        events.Released(*IDS, 3, ""),
        "info",
        "released",
        {"job": "tumours", "round": 4, "contributors": 3, "counted": "yes"},
    ),
    (
        events.Released(*IDS, 3, "LEASE_EXPIRED"),
        "info",
        "released",
        {"job": "tumours", "round": 4, "contributors": 3, "counted": "LEASE_EXPIRED"},
    ),
    (
        events.AcceptedAndLeftOut(*IDS, DIGEST),
        "error",
        "THE AGGREGATOR ACCEPTED AN UPDATE AND LEFT IT OUT OF ITS RELEASE",
        {"job": "tumours", "round": 4, "manifest": HEX},
    ),
    (
        events.CountedUnsent(*IDS, DIGEST),
        "error",
        "AN UPDATE MAY HAVE BEEN COUNTED IN THIS OWNER'S NAME THAT IT NEVER SENT",
        {"job": "tumours", "round": 4, "manifest": HEX},
    ),
    (
        events.EndNotRecorded(NO),
        "error",
        "the end of a round could not be recorded",
        {"reason": "no"},
    ),
    (
        events.EndCrashed(BUG),
        "error",
        "the end of a round could not be recorded",
        {"exc_info": BUG},
    ),
]
KINDS = {events.Event, events.RoundEvent, events.ErrorEvent, events.RoundErrorEvent}


def test_what_takes_part_in_rounds_logs_nothing_itself() -> None:
    """The other two tell of the node's own start, and of the coordinator's stream."""
    package = Path(events.__file__).parent
    logging = {
        path.stem
        for path in package.rglob("*.py")
        if "structlog" in path.read_text(encoding="utf-8")
    }
    assert logging == {"event_log", "node", "coordinator_session"}


def test_every_event_has_a_line() -> None:
    told = {kind for kind in vars(events).values() if isinstance(kind, type)}
    told = {kind for kind in told if issubclass(kind, events.Event)}
    assert {type(event) for event, *_ in LINES} == told - KINDS


@pytest.mark.parametrize(
    ("event", "level", "text", "fields"), LINES, ids=lambda v: type(v).__name__
)
def test_an_event_is_one_line_of_the_log(
    event: events.Event, level: str, text: str, fields: dict[str, Any]
) -> None:
    with capture_logs() as lines:
        log_event(event)
    assert lines == [{**fields, "event": text, "log_level": level}]
    assert [key for key in lines[0] if key in fields] == list(fields)
