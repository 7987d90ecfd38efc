"""The owners' door: joins, updates and receipts. Receives `cairn.v1.IntakeService`."""

from collections.abc import Iterator

import grpc

from aggregator_node.roster import Roster
from aggregator_node.rounds.jobs import JobRegistry
from aggregator_node.rounds.receipts import Receipts
from aggregator_node.rounds.session import RoundSession
from aggregator_node.rounds.upload import Upload
from aggregator_node.storage.rollback import RollbackDetector
from cairn.errors import InvalidMessage, Unavailable
from cairn.protocol.messages import check_digest, check_protocol
from cairn.protocol.words import known
from cairn.runtime.clock import Clock
from cairn.runtime.failpoints import failpoint
from cairn.runtime.timeouts import rest
from cairn.transport.idle_timeout import cancel_when_idle
from cairn.transport.steps import caller, certified_caller
from cairn.v1 import aggregator_pb2, aggregator_pb2_grpc
from cairn.v1 import round_pb2 as pb

# Of an update's stream; the chunks come as they are (cairn/transport/framing.py).
Part = aggregator_pb2.SubmitUpdateRequest | memoryview


class IntakeService(aggregator_pb2_grpc.IntakeServiceServicer):
    """An owner is who its certificate says; no message names one."""

    def __init__(
        self,
        jobs: JobRegistry,
        receipts: Receipts,
        roster: Roster,
        rollback: RollbackDetector,
        clock: Clock,
    ) -> None:
        self._jobs = jobs
        self._receipts = receipts
        self._roster = roster
        self._rollback = rollback
        self._clock = clock

    def JoinRound(  # noqa: N802 - gRPC calls it so
        self, request: aggregator_pb2.JoinRoundRequest, context: grpc.ServicerContext
    ) -> aggregator_pb2.JoinRoundResponse:
        owner = caller(context).name
        check_protocol(request.protocol, request.software)
        if request.HasField("seen_head"):
            self._rollback.check(request.seen_head)
        session = self._session(request.manifest_digest)
        if request.join:
            if request.reason:
                raise InvalidMessage("a reason is given where the owner takes part")
            answer = session.join(owner)
            failpoint("aggregator.join.before_reply")
            answer.ledger_head.CopyFrom(self._rollback.head())
            return answer
        known(pb.Reason, request.reason, "reason")
        session.decline(owner, request.reason)
        return aggregator_pb2.JoinRoundResponse()

    def SubmitUpdate(  # noqa: N802 - gRPC calls it so
        self, request_iterator: Iterator[Part], context: grpc.ServicerContext
    ) -> aggregator_pb2.SubmitUpdateResponse:
        certified, requests = certified_caller(context), request_iterator
        owner = certified.node.name
        header = _expected(next(requests, None), "header").header
        if header.HasField("seen_head"):
            self._rollback.check(header.seen_head)
        session = self._session(header.manifest_digest)
        with session.upload(owner, header, context) as upload:
            failpoint("aggregator.push.header_checked")
            # It is this owner's turn: a good owner has waited for this.
            context.send_initial_metadata(())
            commit = self._receive(session, owner, upload, requests)
            failpoint("aggregator.push.complete")
            if not context.is_active():
                raise Unavailable("the owner broke off before its update was accepted")
            self._roster.check(certified)  # it may have been removed while it pushed
            receipt = session.commit(owner, upload, commit)
            failpoint("aggregator.push.before_receipt")
            return aggregator_pb2.SubmitUpdateResponse(receipt=receipt)

    def GetReceipt(  # noqa: N802 - gRPC calls it so
        self, request: aggregator_pb2.GetReceiptRequest, context: grpc.ServicerContext
    ) -> aggregator_pb2.GetReceiptResponse:
        receipt = self._receipts.of(caller(context).name, request)
        return aggregator_pb2.GetReceiptResponse(receipt=receipt)

    def _receive(
        self, session: RoundSession, owner: str, upload: Upload, requests: Iterator[Part]
    ) -> aggregator_pb2.UpdateCommit:
        # Who is silent for all of its turn keeps others waiting, however short the round is.
        turn = rest(upload.turn_ends - self._clock.monotonic())
        with cancel_when_idle(upload.call.cancel, self._clock, turn) as heard:
            while isinstance(part := next(requests, None), memoryview):
                upload.write(part)
                heard()
                session.heard(owner, upload)
            commit = _expected(part, "commit").commit
            if next(requests, None) is not None:
                raise InvalidMessage("something follows the commit")
        return commit

    def _session(self, manifest_digest: bytes) -> RoundSession:
        return self._jobs.session(check_digest(manifest_digest, "manifest_digest"))


def _expected(part: Part | None, due: str) -> aggregator_pb2.SubmitUpdateRequest:
    """The part of an update's stream, which must be the message `due`."""
    if isinstance(part, aggregator_pb2.SubmitUpdateRequest) and part.WhichOneof("part") == due:
        return part
    brought = "a chunk" if isinstance(part, memoryview) else part and part.WhichOneof("part")
    raise InvalidMessage(f"the stream brought {brought or 'its end'} where its {due} was due")
