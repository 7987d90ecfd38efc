"""Sees a round to its end: makes the release, or the abort, durable before anybody is told of it."""

import structlog

from aggregator_node.rounds.recorder import RoundRecorder
from aggregator_node.rounds.session import RoundSession
from aggregator_node.rounds.upload import RoundContext
from aggregator_node.storage.rows import RoundRow
from cairn.errors import LimitExceeded, Unavailable, WrongState
from cairn.runtime.failpoints import failpoint
from cairn.v1 import round_pb2 as pb

log = structlog.get_logger()


def see_to_end(
    live: RoundSession, row: RoundRow, terms: RoundContext, recorder: RoundRecorder
) -> "pb.Reason":
    """Wait for the round's end and record it; whatever fails, the round ends.

    Returns the reason why there is no release; unspecified where there is one.
    """
    try:
        closing = live.await_seal()
        if closing is None:
            recorder.abort(row, live.reason, live.exclusions)
            return live.reason
        failpoint("aggregator.seal.before_release")
        recorder.release(row, terms, closing)
        return pb.REASON_UNSPECIFIED
    except LimitExceeded as error:  # the average of finite values is not
        log.error("round not released", job=row.job, round=row.number, error=str(error))
        return _abort_or_fail(live, row, pb.REASON_NON_FINITE, recorder)
    except WrongState as error:  # an earlier release forbids this one
        log.error("round not released", job=row.job, round=row.number, error=str(error))
        return _abort_or_fail(live, row, error.reason, recorder)
    except Unavailable as error:  # there is no memory, or no room on the disk
        log.error("round not released", job=row.job, round=row.number, error=str(error))
        return _abort_or_fail(live, row, error.reason or pb.REASON_STORAGE_FAILED, recorder)
    except OSError as error:  # it says which file, and what its disk lacks
        log.error("round not released", job=row.job, round=row.number, error=str(error))
        return _abort_or_fail(live, row, pb.REASON_STORAGE_FAILED, recorder)
    except Exception:
        log.exception("round not released", job=row.job, round=row.number)
        reason = live.reason or pb.REASON_STORAGE_FAILED
        return _abort_or_fail(live, row, reason, recorder)


def _abort_or_fail(
    live: RoundSession, row: RoundRow, reason: "pb.Reason", recorder: RoundRecorder
) -> "pb.Reason":
    """Record an abort where that is still possible; returns the reason that is told.

    What was recorded before the failure stands, and is told: a release cannot be taken back.
    """
    try:
        recorder.abort(row, reason, live.exclusions)
    except WrongState:
        return recorder.end_of(row)
    except Unavailable as error:  # the next opening or the next start records it
        log.error("round could not be recorded", job=row.job, round=row.number, reason=str(error))
        return pb.REASON_STORAGE_FAILED
    except Exception:
        log.exception("round could not be recorded", job=row.job, round=row.number)
        return pb.REASON_STORAGE_FAILED
    return reason
