"""Writes what happens in jobs and rounds to the log."""

import structlog

from aggregator_node.events import (
    Event,
    JobRegistered,
    MetricsLeftOut,
    OwnerDeclined,
    RecordFailed,
    ReleaseFailed,
    RoundAborted,
    RoundOpened,
    RoundReleased,
    SumsRefused,
    UpdateAccepted,
)
from cairn.errors import TooMuch, Unavailable, WrongState
from cairn.protocol.messages import reason_word

log = structlog.get_logger()

_NO_METRICS = (
    "metrics are left out: an earlier release of this base has metrics that overlap with them"
)


def write(event: Event) -> None:
    """Write one line. An error that nobody expects is written with its traceback."""
    values = vars(event)
    match event:
        case JobRegistered():
            log.info("job registered", **values)
        case RoundOpened():
            log.info("round opened", **values)
        case OwnerDeclined(reason=reason):
            log.info("declined", **values | {"reason": reason_word(reason)})
        case UpdateAccepted():
            log.info("accepted", **values)
        case SumsRefused():
            log.error("round cannot go on", **values)
        case MetricsLeftOut():
            log.info(_NO_METRICS, **values)
        case RoundReleased():
            log.info("released", **values)
        case RoundAborted(reason=reason):
            log.warning("round aborted", **values | {"reason": reason_word(reason)})
        case ReleaseFailed(error=TooMuch() | WrongState() | Unavailable() | OSError() as error):
            log.error("round not released", **values | {"error": str(error)})
        case ReleaseFailed(job, number, error):
            log.error("round not released", job=job, round=number, exc_info=error)
        case RecordFailed(job, number, Unavailable() as error):
            log.error("round could not be recorded", job=job, round=number, reason=str(error))
        case RecordFailed(job, number, error):
            log.error("round could not be recorded", job=job, round=number, exc_info=error)
