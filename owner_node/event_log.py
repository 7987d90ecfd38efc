"""Writes what happens to an owner in its rounds to the node's log."""

import structlog

from cairn.errors import InvalidMessage
from cairn.protocol.words import reason_word
from cairn.v1 import round_pb2 as pb
from owner_node import events

log = structlog.get_logger()

_NOT_FETCHED = "the statement of a round was not fetched"
_LINES: dict[type[events.Event], tuple[str, str]] = {
    events.InvitationRefused: ("error", "invitation refused"),
    events.InvitationUnreadable: ("error", "the invitation could not be read"),
    events.OtherJobAwaited: ("info", "waiting for the end of a round of another job"),
    events.Declined: ("warning", "declined"),
    events.NotDeclined: ("warning", "could not decline"),
    events.LeftOut: ("warning", "left out of the round"),
    events.AcceptedBefore: ("info", "update was accepted before"),
    events.LeaseNotRenewed: ("warning", "the lease could not be renewed, trying again"),
    events.RoundEndedMeanwhile: ("warning", "the round has ended without this owner"),
    events.DeadlinePassed: ("warning", "the round's deadline has passed: the work on it is ended"),
    events.Queued: ("info", "waiting in line to push"),
    events.RoundFailed: ("error", "round failed"),
    events.RoundCrashed: ("error", "round failed"),
    events.FailureCounted: (
        "warning",
        (
            "a round failed for a cause that may depend on this owner's data: after max_failures of them the task is"
            " declined until `cairn reset`"
        ),
    ),
    events.UnlistedMetricsDropped: (
        "warning",
        "metrics that this owner's file does not list are dropped",
    ),
    events.NewMetricsDropped: (
        "warning",
        "metrics that the task did not report at first are dropped until `cairn reset`",
    ),
    events.PushedAgain: ("info", "the finished update is pushed again, without training"),
    events.UpdateRefused: ("error", "update refused"),
    events.UpdateAccepted: ("info", "update accepted"),
    events.ReceiptNotKept: ("error", "a receipt could not be kept"),
    events.ReceiptRefused: ("warning", "the receipt could not be fetched"),
    events.ReceiptNotFetched: ("warning", "the receipt was not fetched"),
    events.DecisionNotRecorded: ("error", "a decision could not be recorded"),
    events.GivenUp: ("warning", "the coordinator gave up a round"),
    events.StatementForged: (
        "error",
        "the coordinator sent a statement that is not the aggregator's",
    ),
    events.EndAwaited: ("info", "waiting for the end of a round, whatever the coordinator says"),
    events.AggregatorNotAsked: ("warning", _NOT_FETCHED),
    events.CountNotKnown: ("warning", "the receipt of a round was not fetched"),
    events.Released: ("info", "released"),
    events.AcceptedAndLeftOut: (
        "error",
        "THE AGGREGATOR ACCEPTED AN UPDATE AND LEFT IT OUT OF ITS RELEASE",
    ),
    events.CountedUnsent: (
        "error",
        "AN UPDATE MAY HAVE BEEN COUNTED IN THIS OWNER'S NAME THAT IT NEVER SENT",
    ),
    events.EndNotRecorded: ("error", "the end of a round could not be recorded"),
    events.EndCrashed: ("error", "the end of a round could not be recorded"),
}


def log_event(event: events.Event) -> None:
    """Write one line."""
    level, text = (
        _end_not_told(event) if isinstance(event, events.EndNotTold) else _LINES[type(event)]
    )
    getattr(log, level)(text, **_fields(event))


def _end_not_told(event: events.EndNotTold) -> tuple[str, str]:
    if event.error.reason == pb.REASON_ROLLED_BACK:
        return "error", "THE AGGREGATOR'S STATE WAS REPLACED"
    if isinstance(event.error, InvalidMessage):
        return "error", "the aggregator's answer on a round is not good"
    return "warning", _NOT_FETCHED


def _fields(event: events.Event) -> dict[str, object]:
    match event:
        case events.Declined(job, number, error):
            why = reason_word(error.reason)
            return {"job": job, "round": number, "why": why, "reason": str(error)}
        case events.LeaseNotRenewed(error):
            return {"trouble": str(error)}
        case events.StatementForged(error):
            return {"why": str(error)}
        case events.GivenUp(reason):
            known = reason in pb.Reason.values()
            return {"reason": reason_word(reason) if known else f"unknown reason {reason}"}
        case events.EndNotTold(about, manifest, error):
            ids = (
                {"job": about.job, "round": about.round} if about else {"manifest": manifest.hex()}
            )
            return {**ids, "reason": str(error)}
        case events.UpdateAccepted(job, number, nbytes, digest, clipped):
            ids = {"job": job, "round": number}
            return {**ids, "bytes": nbytes, "digest": digest.hex(), "clipped": clipped}
        case events.Released(job, number, contributors, why_not):
            counted = why_not or "yes"
            return {"job": job, "round": number, "contributors": contributors, "counted": counted}
    return dict(_plain(key, value) for key, value in vars(event).items())


def _plain(key: str, value: object) -> tuple[str, object]:
    """A field of an event as the log has it."""
    match key:
        case "error":
            return "reason", str(value)
        case "cause":
            return "exc_info", value
    return key, value.hex() if isinstance(value, bytes) else value
