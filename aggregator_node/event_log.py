"""Writes what happens in jobs and rounds to the log."""

import structlog

from aggregator_node import events
from cairn.errors import LimitExceeded, Unavailable, WrongState
from cairn.protocol.words import reason_word

log = structlog.get_logger()

_NO_METRICS = (
    "metrics are left out: an earlier release of this base has metrics that overlap with them"
)


def write(event: events.Event) -> None:
    """Write one line. An error that nobody expects is written with its traceback."""
    values = vars(event)
    match event:
        case events.JobRegistered():
            log.info("job registered", **values)
        case events.RoundOpened():
            log.info("round opened", **values)
        case events.OwnerDeclined(reason=reason):
            log.info("declined", **values | {"reason": reason_word(reason)})
        case events.UpdateAccepted():
            log.info("accepted", **values)
        case events.SumsRefused():
            log.error("round cannot go on", **values)
        case events.MetricsLeftOut():
            log.info(_NO_METRICS, **values)
        case events.RoundReleased():
            log.info("released", **values)
        case events.RoundAborted(reason=reason):
            log.warning("round aborted", **values | {"reason": reason_word(reason)})
        case events.ReleaseFailed(
            error=LimitExceeded() | WrongState() | Unavailable() | OSError() as error
        ):
            log.error("round not released", **values | {"error": str(error)})
        case events.ReleaseFailed(job, number, error):
            log.error("round not released", job=job, round=number, exc_info=error)
        case events.RecordFailed(job, number, Unavailable() as error):
            log.error("round could not be recorded", job=job, round=number, reason=str(error))
        case events.RecordFailed(job, number, error):
            log.error("round could not be recorded", job=job, round=number, exc_info=error)
