"""What was signed and recorded, for everybody it concerns. Receives `cairn.v1.RecordService`."""

import grpc

from aggregator_node.storage.rollback import RollbackDetector
from aggregator_node.storage.store import Store
from cairn.errors import CallerNotAllowed, NotFound
from cairn.identity.names import NodeName, Role
from cairn.protocol.messages import check_digest, manifest_from_bytes, within
from cairn.transport.steps import caller
from cairn.v1 import aggregator_pb2, aggregator_pb2_grpc
from cairn.v1 import round_pb2 as pb

_MAX_ENTRIES = 1000
_LAST_NUMBER = (1 << 63) - 1  # SQLite's largest
_PAGE = 50
# Of one answer, which may lie here unread; an entry with a large cohort has 70 KiB.
_MAX_BYTES = 1 << 18
_FRAME_BYTES = 128  # of an entry, beside its body


class RecordService(aggregator_pb2_grpc.RecordServiceServicer):
    """Statements and ledger entries; no weights."""

    def __init__(self, store: Store, rollback: RollbackDetector) -> None:
        self._store = store
        self._rollback = rollback

    def GetStatement(  # noqa: N802 - gRPC calls it so
        self, request: aggregator_pb2.GetStatementRequest, context: grpc.ServicerContext
    ) -> aggregator_pb2.GetStatementResponse:
        if request.HasField("seen_head"):  # first: a state that was set back may not know the round
            self._rollback.check(request.seen_head)
        row = self._store.round(check_digest(request.manifest_digest, "manifest_digest"))
        manifest = pb.Signed.FromString(row.manifest)
        job = self._store.job(row.job)
        self._check_concerned(caller(context), manifest, job.coordinator if job else "")
        if row.state == aggregator_pb2.ROUND_STATE_ABORTED:
            raise NotFound("the round ended without a release", pb.REASON_ROUND_ENDED)
        answer = aggregator_pb2.GetStatementResponse(ledger_head=self._rollback.head())
        if row.statement is not None:
            answer.statement.ParseFromString(row.statement)
        return answer  # of an open round the head alone: owners ask on, and that is no refusal to record

    def ListEntries(  # noqa: N802 - gRPC calls it so
        self, request: aggregator_pb2.ListEntriesRequest, context: grpc.ServicerContext
    ) -> aggregator_pb2.ListEntriesResponse:
        del context
        limit = within(request.limit, 1, _MAX_ENTRIES, "limit")
        first = within(request.first, 1, _LAST_NUMBER, "first")
        answer = aggregator_pb2.ListEntriesResponse(head=self._rollback.head())
        room = _MAX_BYTES
        while len(answer.entries) < limit:
            page = self._store.entries(first, min(_PAGE, limit - len(answer.entries)))
            for entry in page:
                room -= len(entry.body) + _FRAME_BYTES
                if room < 0 and answer.entries:
                    return answer
                answer.entries.add(
                    number=entry.number, kind=entry.kind, body=entry.body, head=entry.head
                )
            if len(page) < _PAGE:
                break
            first += len(page)
        return answer

    def _check_concerned(self, node: NodeName, manifest: pb.Signed, coordinator: str) -> None:
        cohort = manifest_from_bytes(manifest.body).cohort
        concerned = node.name in cohort if node.role is Role.OWNER else node.name == coordinator
        if not concerned:
            raise CallerNotAllowed("only the round's cohort and its coordinator may ask")
