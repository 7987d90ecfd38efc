"""The coordinator's door: jobs, rounds and averages. Receives `cairn.v1.ReleaseService`.

`CollectRelease` is the only method of all that sends tensors to a coordinator.
"""

from collections.abc import Iterator

import grpc

from aggregator_node.admission import Opening
from aggregator_node.idle_shutdown import IdleShutdown
from aggregator_node.rounds.jobs import JobRegistry
from aggregator_node.rounds.model_submission import ModelSubmission
from aggregator_node.rounds.registry import RoundRegistry
from aggregator_node.rounds.session import ENDED
from aggregator_node.storage.rows import RoundRow
from aggregator_node.storage.store import Store
from cairn.errors import InvalidMessage, NotFound, WrongState
from cairn.model.safetensors_reader import ModelReader
from cairn.protocol.cohorts import check_owners
from cairn.protocol.messages import check_digest, check_protocol
from cairn.protocol.words import known
from cairn.runtime.clock import Clock
from cairn.runtime.failpoints import failpoint
from cairn.runtime.timeouts import SHUTDOWN_SECONDS
from cairn.transport.idle_timeout import cancel_when_idle
from cairn.transport.steps import caller
from cairn.v1 import aggregator_pb2, aggregator_pb2_grpc
from cairn.v1 import round_pb2 as pb

_LOOK_EVERY_SECONDS = 5  # whether a watcher has left


class ReleaseService(aggregator_pb2_grpc.ReleaseServiceServicer):
    """A coordinator sees its own jobs and nobody else's."""

    def __init__(
        self,
        jobs: JobRegistry,
        submission: ModelSubmission,
        rounds: RoundRegistry,
        store: Store,
        idle_shutdown: IdleShutdown,
        clock: Clock,
    ) -> None:
        self._jobs = jobs
        self._submission = submission
        self._clock = clock
        self._rounds = rounds
        self._store = store
        self._idle_shutdown = idle_shutdown

    def RegisterJob(  # noqa: N802 - gRPC calls it so
        self, request: aggregator_pb2.RegisterJobRequest, context: grpc.ServicerContext
    ) -> aggregator_pb2.RegisterJobResponse:
        check_protocol(request.protocol, request.software)
        process = check_digest(request.process, "process")
        with self._idle_shutdown.call():
            coordinator = caller(context).name
            answer = self._jobs.register(
                coordinator, request.job_spec, process, ended=request.ended
            )
            failpoint("aggregator.job.before_reply")
        return answer

    def SubmitModel(  # noqa: N802 - gRPC calls it so
        self,
        request_iterator: Iterator[aggregator_pb2.SubmitModelRequest | memoryview],
        context: grpc.ServicerContext,
    ) -> aggregator_pb2.SubmitModelResponse:
        first = next(request_iterator, None)
        if not isinstance(first, aggregator_pb2.SubmitModelRequest):
            raise InvalidMessage("the stream brought no header, which comes first")
        header = first.header
        digest = check_digest(header.digest, "digest")
        coordinator = caller(context).name
        with (
            self._idle_shutdown.call(),
            self._submission.receive(coordinator, header.job, header.epoch, digest) as incoming,
            cancel_when_idle(context.cancel, self._clock) as heard,
        ):
            while incoming is not None and (part := next(request_iterator, None)) is not None:
                if not isinstance(part, memoryview):
                    raise InvalidMessage("the stream brought another header where a chunk was due")
                incoming.write(part)
                heard()
        return aggregator_pb2.SubmitModelResponse()

    def OpenRound(  # noqa: N802 - gRPC calls it so
        self, request: aggregator_pb2.OpenRoundRequest, context: grpc.ServicerContext
    ) -> aggregator_pb2.OpenRoundResponse:
        known(pb.Phase, request.phase, "phase")
        opening = Opening(
            round=request.round,
            phase=request.phase,
            cohort=check_owners(request.cohort),
            base_digest=check_digest(request.base_digest, "base_digest"),
        )
        with self._idle_shutdown.call():
            coordinator = caller(context).name
            manifest = self._jobs.open(coordinator, request.epoch, request.job, opening)
            failpoint("aggregator.open.before_reply")
        return aggregator_pb2.OpenRoundResponse(manifest=manifest)

    def WatchRound(  # noqa: N802 - gRPC calls it so
        self, request: aggregator_pb2.WatchRoundRequest, context: grpc.ServicerContext
    ) -> Iterator[aggregator_pb2.WatchRoundResponse]:
        with self._idle_shutdown.call():
            row = self._row(request, context)
            session = self._rounds.find(row.manifest_digest)
            seen = aggregator_pb2.ROUND_STATE_UNSPECIFIED
            while session is not None and seen not in ENDED:
                state = session.wait_for_change(seen, _LOOK_EVERY_SECONDS)
                if not context.is_active():
                    return
                if state != seen:
                    seen = state
                    if seen not in ENDED:
                        yield aggregator_pb2.WatchRoundResponse(state=state)
            ended = self._row(request, context)
            end = session if session is not None and session.reason else ended
            yield aggregator_pb2.WatchRoundResponse(
                state=end.state,
                reason=end.reason,
                exclusions=[pb.Exclusion(owner=owner, reason=why) for owner, why in end.exclusions],
            )

    def CollectRelease(  # noqa: N802 - gRPC calls it so
        self, request: aggregator_pb2.CollectReleaseRequest, context: grpc.ServicerContext
    ) -> Iterator[aggregator_pb2.CollectReleaseResponse | memoryview]:
        with self._idle_shutdown.call():
            row = self._row(request, context)
            if row.state != aggregator_pb2.ROUND_STATE_RELEASED or row.statement is None:
                raise WrongState("the round is not released")
            statement = pb.Signed.FromString(row.statement)
            header = aggregator_pb2.ReleaseHeader(statement=statement)
            failpoint("aggregator.collect.before_reply")
            if row.phase != pb.PHASE_TRAIN:
                yield aggregator_pb2.CollectReleaseResponse(header=header)
                return
            with self._values(row) as values:
                if request.offset > values.total:
                    raise InvalidMessage(f"the release has {values.total} bytes")
                header.total_bytes = values.total
                yield aggregator_pb2.CollectReleaseResponse(header=header)
                yield from values.pieces(request.offset)

    def AbortRound(  # noqa: N802 - gRPC calls it so
        self, request: aggregator_pb2.AbortRoundRequest, context: grpc.ServicerContext
    ) -> aggregator_pb2.AbortRoundResponse:
        digest = check_digest(request.manifest_digest, "manifest_digest")
        session = self._jobs.abort(caller(context).name, request.epoch, digest)
        if session is not None:
            session.wait_for_end(SHUTDOWN_SECONDS)  # on the disk: the next round can be opened
        return aggregator_pb2.AbortRoundResponse()

    def _values(self, row: RoundRow) -> ModelReader:
        try:
            return ModelReader(self._store.release_path(row.manifest_digest))
        except FileNotFoundError:
            raise NotFound("a later release has replaced this one") from None

    def _row(
        self,
        request: aggregator_pb2.WatchRoundRequest | aggregator_pb2.CollectReleaseRequest,
        context: grpc.ServicerContext,
    ) -> RoundRow:
        digest = check_digest(request.manifest_digest, "manifest_digest")
        return self._jobs.row(caller(context).name, request.epoch, digest)
