"""Brings a round's base into the training process's memory, and looks at it before the task does."""

import threading
import time
from collections.abc import Callable

from cairn.errors import CairnError, InvalidMessage, UpdateRefused, WrongState
from cairn.model.validation import Bounds, check_values
from cairn.protocol.words import word_of
from cairn.runtime.timeouts import rest
from cairn.tasks.loader import TaskFailed
from cairn.transport.receiver import PayloadReceiver
from cairn.transport.retry import retry_while_unavailable
from cairn.v1 import round_pb2 as pb
from owner_node.coordinator_client import CoordinatorClient
from owner_node.invitation import Declined, Invited
from owner_node.training.supervisor import TrainingSupervisor


class Downloader:
    """Fetches from one coordinator. `largest_value` is the largest that a base may have."""

    def __init__(
        self, coordinator: CoordinatorClient, largest_value: float, stopping: threading.Event
    ) -> None:
        self._coordinator = coordinator
        self._largest_value = largest_value
        self._stopping = stopping

    def fetch(
        self,
        invited: Invited,
        process: TrainingSupervisor,
        deadline: float,
        is_over: Callable[[], bool],
    ) -> None:
        """Have the base in the process's memory; it is fetched only where it is not there.

        Raises Declined where the task has not the function that the job asks for or the job's model is not the
        task's, of which nothing is fetched then and for which no memory is taken, and where the base does not come, is not the manifest's or has values of
        no model.
        """
        _check_model(invited, process, is_over)
        if invited.job.statistics is not None:  # its base has nothing to say
            return
        schema, digest = invited.job.schema, invited.manifest.base_digest
        base = process.base_buffer(schema)
        if process.has_base(schema, digest):
            return

        incoming = PayloadReceiver(len(base), schema.hasher(), base)

        def fetch() -> None:
            self._coordinator.fetch(digest, incoming, until(deadline))

        try:
            retry_while_unavailable(fetch, "the coordinator", until(deadline), self._stopping)
        except InvalidMessage as error:
            raise Declined(_not_fetched(error), pb.REASON_BASE_MISMATCH) from None
        except CairnError as error:  # nothing that a coordinator says is the aggregator's word
            raise Declined(_not_fetched(error), pb.REASON_FETCH_FAILED) from None
        try:
            check_values(
                schema,
                base,
                Bounds(value=self._largest_value, integer=1 << 63),
                # A base that is free has one form only: the aggregator compares bases by their digests. Any other
                # is a release, which has no negative zeros, and so has what lies here of an earlier round.
                takes_negative_zeros=bool(invited.manifest.previous_release_digest),
            )
        except UpdateRefused as error:
            raise Declined(f"in the base the {error}", pb.REASON_MODEL_SUSPECT) from None
        process.keep_base(digest)


def _check_model(
    invited: Invited, process: TrainingSupervisor, is_over: Callable[[], bool]
) -> None:
    """No data was opened yet, so nothing here depends on it, and the reason may be told."""
    aggregation = invited.job.aggregation
    try:
        model = process.model(is_over)
    except TaskFailed as failed:
        if is_over():
            raise WrongState(
                "the round ended before this owner was done", pb.REASON_ROUND_ENDED
            ) from None
        raise Declined(
            f"the task's model is not known: {failed}", pb.REASON_SCHEMA_MISMATCH
        ) from None
    if why := model.why_not_asked(word_of(pb.Content, aggregation.content)):
        raise Declined(why, pb.REASON_JOB_REFUSED)
    if aggregation.are_statistics:  # whose schema follows from the job
        return
    if why := model.why_not(invited.job.schema, gradients=aggregation.are_gradients):
        raise Declined(why, pb.REASON_SCHEMA_MISMATCH)


def until(deadline: float) -> float:
    """The seconds left to a round's deadline, a moment of the monotonic clock; never none at all.

    Raises WrongState once it has passed.
    """
    left = deadline - time.monotonic()
    if left <= 0:
        raise WrongState("the round's deadline has passed", pb.REASON_ROUND_ENDED)
    return rest(left)


def _not_fetched(error: CairnError) -> str:
    return f"the base was not fetched from the coordinator: {error}"
