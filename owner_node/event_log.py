"""Writes what happens to an owner in its rounds to the node's log."""

import structlog

from cairn.errors import InvalidMessage
from cairn.protocol.words import reason_word
from cairn.v1 import round_pb2 as pb
from owner_node import events

log = structlog.get_logger()

_NOT_FETCHED = "the statement of a round was not fetched"
_INFO = {
    events.OtherJobAwaited: "waiting for the end of a round of another job",
    events.Joined: "taking part",
    events.AcceptedBefore: "update was accepted before",
    events.Queued: "waiting in line to push",
    events.PrivacySpent: "private training begins, and is counted whatever becomes of it",
    events.PushedAgain: "the finished update is pushed again, without training",
    events.UpdateAccepted: "update accepted",
    events.EndAwaited: "waiting for the end of a round, whatever the coordinator says",
    events.Released: "released",
}
_WARNING = {
    events.Declined: "declined",
    events.NotDeclined: "could not decline",
    events.LeftOut: "left out of the round",
    events.LeaseNotRenewed: "the lease could not be renewed, trying again",
    events.RoundEndedMeanwhile: "the round has ended without this owner",
    events.DeadlinePassed: "the round's deadline has passed: the work on it is ended",
    events.FailureCounted: (
        "a round failed for a cause that may depend on this owner's data: after max_failures of them the task is"
        " declined until `cairn reset`"
    ),
    events.UnlistedMetricsDropped: "metrics that this owner's file does not list are dropped",
    events.NewMetricsDropped: "metrics that the task did not report at first are dropped until `cairn reset`",
    events.ReceiptRefused: "the receipt could not be fetched",
    events.ReceiptNotFetched: "the receipt was not fetched",
    events.UpdateNotKept: (
        "the finished update cannot be kept: if this node dies in this round, it has to leave it"
    ),
    events.KeptTensorsGone: (
        "what the task kept of this job is not there: the round begins with what its model() returns"
    ),
    events.GivenUp: "the coordinator gave up a round",
    events.AggregatorNotAsked: _NOT_FETCHED,
    events.CountNotKnown: "the receipt of a round was not fetched",
}
_ERROR = {
    events.InvitationRefused: "invitation refused",
    events.InvitationUnreadable: "the invitation could not be read",
    events.RoundFailed: "round failed",
    events.RoundCrashed: "round failed",
    events.UpdateRefused: "update refused",
    events.ReceiptNotKept: "a receipt could not be kept",
    events.DecisionNotRecorded: "a decision could not be recorded",
    events.UpdateUnreadable: "the finished update cannot be read",
    events.UpdateDamaged: "the finished update is damaged",
    events.FileNotRemoved: "a file cannot be removed",
    events.StatementForged: "the coordinator sent a statement that is not the aggregator's",
    events.AcceptedAndLeftOut: "THE AGGREGATOR ACCEPTED AN UPDATE AND LEFT IT OUT OF ITS RELEASE",
    events.CountedUnsent: "AN UPDATE MAY HAVE BEEN COUNTED IN THIS OWNER'S NAME THAT IT NEVER SENT",
    events.EndNotRecorded: "the end of a round could not be recorded",
    events.EndCrashed: "the end of a round could not be recorded",
}
_LINES: dict[type[events.Event], tuple[str, str]] = {
    kind: (level, text)
    for level, texts in (("info", _INFO), ("warning", _WARNING), ("error", _ERROR))
    for kind, text in texts.items()
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
        case events.PrivacySpent(job, number, epsilon, allowed, delta):
            spent = f"{epsilon:.3g} of {allowed:g}"
            return {"job": job, "round": number, "epsilon": spent, "delta": delta}
        case events.Released(job, number, contributors, why_not):
            counted = why_not or "yes"
            return {"job": job, "round": number, "contributors": contributors, "counted": counted}
    return dict(_plain(key, value) for key, value in vars(event).items())


def _plain(key: str, value: object) -> tuple[str, object]:
    """A field of an event as the log has it."""
    match key:
        case "error":
            return "reason", str(value)
        case "file" | "trouble":
            return key, str(value)
        case "cause":
            return "exc_info", value
    return key, value.hex() if isinstance(value, bytes) else value
