"""What was signed and recorded, for everybody it concerns. Receives `cairn.v1.RecordService`."""

import grpc

from aggregator_node.store import Store
from cairn.errors import CallerNotAllowed, NotFound
from cairn.guard import caller
from cairn.identity import NodeName, Role
from cairn.messages import check_digest, manifest_from_bytes, within
from cairn.v1 import aggregator_pb2, aggregator_pb2_grpc
from cairn.v1 import round_pb2 as pb

_MAX_ENTRIES = 1000


class RecordService(aggregator_pb2_grpc.RecordServiceServicer):
    """Statements and ledger entries; no weights."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def GetStatement(  # noqa: N802 - gRPC calls it so
        self, request: aggregator_pb2.GetStatementRequest, context: grpc.ServicerContext
    ) -> aggregator_pb2.GetStatementResponse:
        row = self._store.round(check_digest(request.manifest_digest, "manifest_digest"))
        manifest = pb.Signed.FromString(row.manifest)
        job = self._store.job(row.job)
        self._check_concerned(caller(context), manifest, job.coordinator if job else "")
        if row.statement is None:
            raise NotFound("the round has no release")
        statement = pb.Signed.FromString(row.statement)
        return aggregator_pb2.GetStatementResponse(statement=statement)

    def ListEntries(  # noqa: N802 - gRPC calls it so
        self, request: aggregator_pb2.ListEntriesRequest, context: grpc.ServicerContext
    ) -> aggregator_pb2.ListEntriesResponse:
        del context
        limit = within(request.limit, 1, _MAX_ENTRIES, "limit")
        rows = self._store.entries(request.first, limit)
        return aggregator_pb2.ListEntriesResponse(
            entries=[
                aggregator_pb2.LedgerEntry(number=number, kind=kind, body=body, head=head)
                for number, kind, body, head in rows
            ]
        )

    def _check_concerned(self, node: NodeName, manifest: pb.Signed, coordinator: str) -> None:
        cohort = manifest_from_bytes(manifest.body).cohort
        concerned = node.name in cohort if node.role is Role.OWNER else node.name == coordinator
        if not concerned:
            raise CallerNotAllowed("only the round's cohort and its coordinator may ask")
