from cairn.v1 import round_pb2 as _round_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class RoundState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ROUND_STATE_UNSPECIFIED: _ClassVar[RoundState]
    ROUND_STATE_OPEN: _ClassVar[RoundState]
    ROUND_STATE_SEALED: _ClassVar[RoundState]
    ROUND_STATE_RELEASED: _ClassVar[RoundState]
    ROUND_STATE_ABORTED: _ClassVar[RoundState]
ROUND_STATE_UNSPECIFIED: RoundState
ROUND_STATE_OPEN: RoundState
ROUND_STATE_SEALED: RoundState
ROUND_STATE_RELEASED: RoundState
ROUND_STATE_ABORTED: RoundState

class JoinRoundRequest(_message.Message):
    __slots__ = ("manifest_digest", "join", "reason", "seen_head", "protocol", "software")
    MANIFEST_DIGEST_FIELD_NUMBER: _ClassVar[int]
    JOIN_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    SEEN_HEAD_FIELD_NUMBER: _ClassVar[int]
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    SOFTWARE_FIELD_NUMBER: _ClassVar[int]
    manifest_digest: bytes
    join: bool
    reason: _round_pb2.Reason
    seen_head: _round_pb2.Signed
    protocol: int
    software: str
    def __init__(self, manifest_digest: _Optional[bytes] = ..., join: _Optional[bool] = ..., reason: _Optional[_Union[_round_pb2.Reason, str]] = ..., seen_head: _Optional[_Union[_round_pb2.Signed, _Mapping]] = ..., protocol: _Optional[int] = ..., software: _Optional[str] = ...) -> None: ...

class JoinRoundResponse(_message.Message):
    __slots__ = ("lease_seconds", "update_accepted", "open_seconds", "ledger_head", "queue_place")
    LEASE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    UPDATE_ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    OPEN_SECONDS_FIELD_NUMBER: _ClassVar[int]
    LEDGER_HEAD_FIELD_NUMBER: _ClassVar[int]
    QUEUE_PLACE_FIELD_NUMBER: _ClassVar[int]
    lease_seconds: int
    update_accepted: bool
    open_seconds: int
    ledger_head: _round_pb2.Signed
    queue_place: int
    def __init__(self, lease_seconds: _Optional[int] = ..., update_accepted: _Optional[bool] = ..., open_seconds: _Optional[int] = ..., ledger_head: _Optional[_Union[_round_pb2.Signed, _Mapping]] = ..., queue_place: _Optional[int] = ...) -> None: ...

class SubmitUpdateRequest(_message.Message):
    __slots__ = ("header", "chunk", "commit")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    COMMIT_FIELD_NUMBER: _ClassVar[int]
    header: UpdateHeader
    chunk: bytes
    commit: UpdateCommit
    def __init__(self, header: _Optional[_Union[UpdateHeader, _Mapping]] = ..., chunk: _Optional[bytes] = ..., commit: _Optional[_Union[UpdateCommit, _Mapping]] = ...) -> None: ...

class UpdateHeader(_message.Message):
    __slots__ = ("manifest_digest", "base_digest", "examples", "metrics", "total_bytes", "seen_head", "salt")
    class MetricsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    MANIFEST_DIGEST_FIELD_NUMBER: _ClassVar[int]
    BASE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    EXAMPLES_FIELD_NUMBER: _ClassVar[int]
    METRICS_FIELD_NUMBER: _ClassVar[int]
    TOTAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    SEEN_HEAD_FIELD_NUMBER: _ClassVar[int]
    SALT_FIELD_NUMBER: _ClassVar[int]
    manifest_digest: bytes
    base_digest: bytes
    examples: int
    metrics: _containers.ScalarMap[str, float]
    total_bytes: int
    seen_head: _round_pb2.Signed
    salt: bytes
    def __init__(self, manifest_digest: _Optional[bytes] = ..., base_digest: _Optional[bytes] = ..., examples: _Optional[int] = ..., metrics: _Optional[_Mapping[str, float]] = ..., total_bytes: _Optional[int] = ..., seen_head: _Optional[_Union[_round_pb2.Signed, _Mapping]] = ..., salt: _Optional[bytes] = ...) -> None: ...

class UpdateCommit(_message.Message):
    __slots__ = ("payload_digest",)
    PAYLOAD_DIGEST_FIELD_NUMBER: _ClassVar[int]
    payload_digest: bytes
    def __init__(self, payload_digest: _Optional[bytes] = ...) -> None: ...

class SubmitUpdateResponse(_message.Message):
    __slots__ = ("receipt",)
    RECEIPT_FIELD_NUMBER: _ClassVar[int]
    receipt: _round_pb2.Signed
    def __init__(self, receipt: _Optional[_Union[_round_pb2.Signed, _Mapping]] = ...) -> None: ...

class Receipt(_message.Message):
    __slots__ = ("manifest_digest", "owner", "payload_digest", "examples", "metrics", "salt")
    class MetricsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    MANIFEST_DIGEST_FIELD_NUMBER: _ClassVar[int]
    OWNER_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_DIGEST_FIELD_NUMBER: _ClassVar[int]
    EXAMPLES_FIELD_NUMBER: _ClassVar[int]
    METRICS_FIELD_NUMBER: _ClassVar[int]
    SALT_FIELD_NUMBER: _ClassVar[int]
    manifest_digest: bytes
    owner: str
    payload_digest: bytes
    examples: int
    metrics: _containers.ScalarMap[str, float]
    salt: bytes
    def __init__(self, manifest_digest: _Optional[bytes] = ..., owner: _Optional[str] = ..., payload_digest: _Optional[bytes] = ..., examples: _Optional[int] = ..., metrics: _Optional[_Mapping[str, float]] = ..., salt: _Optional[bytes] = ...) -> None: ...

class GetReceiptRequest(_message.Message):
    __slots__ = ("manifest_digest", "payload_digest", "examples", "metrics", "salt")
    class MetricsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    MANIFEST_DIGEST_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_DIGEST_FIELD_NUMBER: _ClassVar[int]
    EXAMPLES_FIELD_NUMBER: _ClassVar[int]
    METRICS_FIELD_NUMBER: _ClassVar[int]
    SALT_FIELD_NUMBER: _ClassVar[int]
    manifest_digest: bytes
    payload_digest: bytes
    examples: int
    metrics: _containers.ScalarMap[str, float]
    salt: bytes
    def __init__(self, manifest_digest: _Optional[bytes] = ..., payload_digest: _Optional[bytes] = ..., examples: _Optional[int] = ..., metrics: _Optional[_Mapping[str, float]] = ..., salt: _Optional[bytes] = ...) -> None: ...

class GetReceiptResponse(_message.Message):
    __slots__ = ("receipt",)
    RECEIPT_FIELD_NUMBER: _ClassVar[int]
    receipt: _round_pb2.Signed
    def __init__(self, receipt: _Optional[_Union[_round_pb2.Signed, _Mapping]] = ...) -> None: ...

class RegisterJobRequest(_message.Message):
    __slots__ = ("job_spec", "protocol", "software", "process", "ended")
    JOB_SPEC_FIELD_NUMBER: _ClassVar[int]
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    SOFTWARE_FIELD_NUMBER: _ClassVar[int]
    PROCESS_FIELD_NUMBER: _ClassVar[int]
    ENDED_FIELD_NUMBER: _ClassVar[int]
    job_spec: bytes
    protocol: int
    software: str
    process: bytes
    ended: bool
    def __init__(self, job_spec: _Optional[bytes] = ..., protocol: _Optional[int] = ..., software: _Optional[str] = ..., process: _Optional[bytes] = ..., ended: _Optional[bool] = ...) -> None: ...

class RegisterJobResponse(_message.Message):
    __slots__ = ("floor", "last_round", "open_manifest", "last_statement", "released", "epoch")
    FLOOR_FIELD_NUMBER: _ClassVar[int]
    LAST_ROUND_FIELD_NUMBER: _ClassVar[int]
    OPEN_MANIFEST_FIELD_NUMBER: _ClassVar[int]
    LAST_STATEMENT_FIELD_NUMBER: _ClassVar[int]
    RELEASED_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    floor: int
    last_round: int
    open_manifest: _round_pb2.Signed
    last_statement: _round_pb2.Signed
    released: int
    epoch: int
    def __init__(self, floor: _Optional[int] = ..., last_round: _Optional[int] = ..., open_manifest: _Optional[_Union[_round_pb2.Signed, _Mapping]] = ..., last_statement: _Optional[_Union[_round_pb2.Signed, _Mapping]] = ..., released: _Optional[int] = ..., epoch: _Optional[int] = ...) -> None: ...

class SubmitModelRequest(_message.Message):
    __slots__ = ("header", "chunk")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    header: SubmitModelHeader
    chunk: bytes
    def __init__(self, header: _Optional[_Union[SubmitModelHeader, _Mapping]] = ..., chunk: _Optional[bytes] = ...) -> None: ...

class SubmitModelHeader(_message.Message):
    __slots__ = ("job", "epoch", "digest")
    JOB_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    job: str
    epoch: int
    digest: bytes
    def __init__(self, job: _Optional[str] = ..., epoch: _Optional[int] = ..., digest: _Optional[bytes] = ...) -> None: ...

class SubmitModelResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class OpenRoundRequest(_message.Message):
    __slots__ = ("job", "round", "phase", "cohort", "base_digest", "epoch")
    JOB_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    PHASE_FIELD_NUMBER: _ClassVar[int]
    COHORT_FIELD_NUMBER: _ClassVar[int]
    BASE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    job: str
    round: int
    phase: _round_pb2.Phase
    cohort: _containers.RepeatedScalarFieldContainer[str]
    base_digest: bytes
    epoch: int
    def __init__(self, job: _Optional[str] = ..., round: _Optional[int] = ..., phase: _Optional[_Union[_round_pb2.Phase, str]] = ..., cohort: _Optional[_Iterable[str]] = ..., base_digest: _Optional[bytes] = ..., epoch: _Optional[int] = ...) -> None: ...

class OpenRoundResponse(_message.Message):
    __slots__ = ("manifest",)
    MANIFEST_FIELD_NUMBER: _ClassVar[int]
    manifest: _round_pb2.Signed
    def __init__(self, manifest: _Optional[_Union[_round_pb2.Signed, _Mapping]] = ...) -> None: ...

class WatchRoundRequest(_message.Message):
    __slots__ = ("manifest_digest", "epoch")
    MANIFEST_DIGEST_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    manifest_digest: bytes
    epoch: int
    def __init__(self, manifest_digest: _Optional[bytes] = ..., epoch: _Optional[int] = ...) -> None: ...

class WatchRoundResponse(_message.Message):
    __slots__ = ("state", "reason", "exclusions")
    STATE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    EXCLUSIONS_FIELD_NUMBER: _ClassVar[int]
    state: RoundState
    reason: _round_pb2.Reason
    exclusions: _containers.RepeatedCompositeFieldContainer[_round_pb2.Exclusion]
    def __init__(self, state: _Optional[_Union[RoundState, str]] = ..., reason: _Optional[_Union[_round_pb2.Reason, str]] = ..., exclusions: _Optional[_Iterable[_Union[_round_pb2.Exclusion, _Mapping]]] = ...) -> None: ...

class CollectReleaseRequest(_message.Message):
    __slots__ = ("manifest_digest", "offset", "epoch")
    MANIFEST_DIGEST_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    manifest_digest: bytes
    offset: int
    epoch: int
    def __init__(self, manifest_digest: _Optional[bytes] = ..., offset: _Optional[int] = ..., epoch: _Optional[int] = ...) -> None: ...

class CollectReleaseResponse(_message.Message):
    __slots__ = ("header", "chunk")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    header: ReleaseHeader
    chunk: bytes
    def __init__(self, header: _Optional[_Union[ReleaseHeader, _Mapping]] = ..., chunk: _Optional[bytes] = ...) -> None: ...

class ReleaseHeader(_message.Message):
    __slots__ = ("statement", "total_bytes")
    STATEMENT_FIELD_NUMBER: _ClassVar[int]
    TOTAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    statement: _round_pb2.Signed
    total_bytes: int
    def __init__(self, statement: _Optional[_Union[_round_pb2.Signed, _Mapping]] = ..., total_bytes: _Optional[int] = ...) -> None: ...

class AbortRoundRequest(_message.Message):
    __slots__ = ("manifest_digest", "epoch")
    MANIFEST_DIGEST_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    manifest_digest: bytes
    epoch: int
    def __init__(self, manifest_digest: _Optional[bytes] = ..., epoch: _Optional[int] = ...) -> None: ...

class AbortRoundResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetStatementRequest(_message.Message):
    __slots__ = ("manifest_digest", "seen_head")
    MANIFEST_DIGEST_FIELD_NUMBER: _ClassVar[int]
    SEEN_HEAD_FIELD_NUMBER: _ClassVar[int]
    manifest_digest: bytes
    seen_head: _round_pb2.Signed
    def __init__(self, manifest_digest: _Optional[bytes] = ..., seen_head: _Optional[_Union[_round_pb2.Signed, _Mapping]] = ...) -> None: ...

class GetStatementResponse(_message.Message):
    __slots__ = ("statement", "ledger_head")
    STATEMENT_FIELD_NUMBER: _ClassVar[int]
    LEDGER_HEAD_FIELD_NUMBER: _ClassVar[int]
    statement: _round_pb2.Signed
    ledger_head: _round_pb2.Signed
    def __init__(self, statement: _Optional[_Union[_round_pb2.Signed, _Mapping]] = ..., ledger_head: _Optional[_Union[_round_pb2.Signed, _Mapping]] = ...) -> None: ...

class ListEntriesRequest(_message.Message):
    __slots__ = ("first", "limit")
    FIRST_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    first: int
    limit: int
    def __init__(self, first: _Optional[int] = ..., limit: _Optional[int] = ...) -> None: ...

class ListEntriesResponse(_message.Message):
    __slots__ = ("entries", "head")
    ENTRIES_FIELD_NUMBER: _ClassVar[int]
    HEAD_FIELD_NUMBER: _ClassVar[int]
    entries: _containers.RepeatedCompositeFieldContainer[LedgerEntry]
    head: _round_pb2.Signed
    def __init__(self, entries: _Optional[_Iterable[_Union[LedgerEntry, _Mapping]]] = ..., head: _Optional[_Union[_round_pb2.Signed, _Mapping]] = ...) -> None: ...

class LedgerEntry(_message.Message):
    __slots__ = ("number", "kind", "body", "head")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    BODY_FIELD_NUMBER: _ClassVar[int]
    HEAD_FIELD_NUMBER: _ClassVar[int]
    number: int
    kind: str
    body: bytes
    head: bytes
    def __init__(self, number: _Optional[int] = ..., kind: _Optional[str] = ..., body: _Optional[bytes] = ..., head: _Optional[bytes] = ...) -> None: ...
