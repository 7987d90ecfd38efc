"""The owners' door: joins, updates and receipts. Receives `cairn.v1.IntakeService`."""

import math
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext

import grpc

from aggregator_node.jobs import Jobs
from aggregator_node.live_round import LiveRound
from aggregator_node.push import Push
from aggregator_node.pushes import IDLE_SECONDS, watched
from aggregator_node.roster import Roster
from aggregator_node.witness import Witness
from cairn.clock import Clock
from cairn.errors import InvalidMessage, Unavailable
from cairn.guard import caller
from cairn.identity import NodeName
from cairn.messages import check_digest, check_protocol, known
from cairn.v1 import aggregator_pb2, aggregator_pb2_grpc
from cairn.v1 import round_pb2 as pb


class IntakeService(aggregator_pb2_grpc.IntakeServiceServicer):
    """An owner is who its certificate says; no message names one."""

    def __init__(self, jobs: Jobs, roster: Roster, witness: Witness, clock: Clock) -> None:
        self._jobs = jobs
        self._roster = roster
        self._witness = witness
        self._clock = clock

    def JoinRound(  # noqa: N802 - gRPC calls it so
        self, request: aggregator_pb2.JoinRoundRequest, context: grpc.ServicerContext
    ) -> aggregator_pb2.JoinRoundResponse:
        owner = caller(context).name
        check_protocol(request.protocol, request.software)
        if request.HasField("seen_head"):
            self._witness.check(request.seen_head)
        live = self._live(request.manifest_digest)
        if request.join:
            if request.reason:
                raise InvalidMessage("a reason is given where the owner takes part")
            joined = live.join(owner)
            return aggregator_pb2.JoinRoundResponse(
                lease_seconds=live.manifest.lease_seconds,
                update_accepted=joined.update_accepted,
                open_seconds=math.ceil(joined.open_seconds),
                ledger_head=self._witness.head(),
            )
        known(pb.Reason, request.reason, "reason")
        live.decline(owner, request.reason)
        return aggregator_pb2.JoinRoundResponse()

    def SubmitUpdate(  # noqa: N802 - gRPC calls it so
        self,
        request_iterator: Iterator[aggregator_pb2.SubmitUpdateRequest],
        context: grpc.ServicerContext,
    ) -> aggregator_pb2.SubmitUpdateResponse:
        return self._take(caller(context), request_iterator, context)

    def GetReceipt(  # noqa: N802 - gRPC calls it so
        self, request: aggregator_pb2.GetReceiptRequest, context: grpc.ServicerContext
    ) -> aggregator_pb2.GetReceiptResponse:
        live = self._live(request.manifest_digest)
        return aggregator_pb2.GetReceiptResponse(receipt=live.receipt(caller(context).name))

    def _take(
        self,
        node: NodeName,
        requests: Iterator[aggregator_pb2.SubmitUpdateRequest],
        context: grpc.ServicerContext,
    ) -> aggregator_pb2.SubmitUpdateResponse:
        owner = node.name
        silence = threading.Timer(
            IDLE_SECONDS, context.cancel
        )  # the round watches from the header on
        silence.start()
        try:
            header = _expect(requests, "header").header
        finally:
            silence.cancel()
        if header.HasField("seen_head"):
            self._witness.check(header.seen_head)
        live = self._live(header.manifest_digest)
        with live.push(owner, header, context.cancel) as push, self._watched(live, push):
            commit = self._receive(live, owner, push, requests)
            if next(requests, None) is not None:
                raise InvalidMessage("something follows the commit")
            if not context.is_active():
                raise Unavailable("the owner broke off before its update was accepted")
            self._roster.check(node)  # it may have been removed while it pushed
            return aggregator_pb2.SubmitUpdateResponse(receipt=live.commit(owner, push, commit))

    def _watched(self, live: LiveRound, push: Push) -> AbstractContextManager[None]:
        """An open round ends its idle pushes itself, and all of them when it is sealed."""
        return nullcontext() if live.is_open else watched(push, self._clock)

    def _receive(
        self,
        live: LiveRound,
        owner: str,
        push: Push,
        requests: Iterator[aggregator_pb2.SubmitUpdateRequest],
    ) -> aggregator_pb2.UpdateCommit:
        while True:
            message = _expect(requests, "chunk", "commit")
            if message.WhichOneof("part") == "commit":
                return message.commit
            push.write(message.chunk, self._clock.monotonic())
            live.heard(owner)

    def _live(self, manifest_digest: bytes) -> LiveRound:
        return self._jobs.live(check_digest(manifest_digest, "manifest_digest"))


def _expect(
    requests: Iterator[aggregator_pb2.SubmitUpdateRequest], *parts: str
) -> aggregator_pb2.SubmitUpdateRequest:
    """The next message of an update's stream, which must be one of `parts`."""
    message = next(requests, None)
    part = message.WhichOneof("part") if message is not None else None
    if message is None or part not in parts:
        raise InvalidMessage(
            f"the stream brought {part or 'its end'} where {' or '.join(parts)} was due"
        )
    return message
