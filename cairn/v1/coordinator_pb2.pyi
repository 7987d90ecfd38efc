from cairn.v1 import round_pb2 as _round_pb2
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class AttendRequest(_message.Message):
    __slots__ = ("federation", "protocol", "software")
    FEDERATION_FIELD_NUMBER: _ClassVar[int]
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    SOFTWARE_FIELD_NUMBER: _ClassVar[int]
    federation: str
    protocol: int
    software: str
    def __init__(self, federation: _Optional[str] = ..., protocol: _Optional[int] = ..., software: _Optional[str] = ...) -> None: ...

class AttendResponse(_message.Message):
    __slots__ = ("invitation", "outcome", "finished")
    INVITATION_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    FINISHED_FIELD_NUMBER: _ClassVar[int]
    invitation: Invitation
    outcome: Outcome
    finished: Finished
    def __init__(self, invitation: _Optional[_Union[Invitation, _Mapping]] = ..., outcome: _Optional[_Union[Outcome, _Mapping]] = ..., finished: _Optional[_Union[Finished, _Mapping]] = ...) -> None: ...

class Invitation(_message.Message):
    __slots__ = ("manifest", "job_spec")
    MANIFEST_FIELD_NUMBER: _ClassVar[int]
    JOB_SPEC_FIELD_NUMBER: _ClassVar[int]
    manifest: _round_pb2.Signed
    job_spec: bytes
    def __init__(self, manifest: _Optional[_Union[_round_pb2.Signed, _Mapping]] = ..., job_spec: _Optional[bytes] = ...) -> None: ...

class Outcome(_message.Message):
    __slots__ = ("manifest_digest", "statement", "reason")
    MANIFEST_DIGEST_FIELD_NUMBER: _ClassVar[int]
    STATEMENT_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    manifest_digest: bytes
    statement: _round_pb2.Signed
    reason: _round_pb2.Reason
    def __init__(self, manifest_digest: _Optional[bytes] = ..., statement: _Optional[_Union[_round_pb2.Signed, _Mapping]] = ..., reason: _Optional[_Union[_round_pb2.Reason, str]] = ...) -> None: ...

class Finished(_message.Message):
    __slots__ = ("job", "completed")
    JOB_FIELD_NUMBER: _ClassVar[int]
    COMPLETED_FIELD_NUMBER: _ClassVar[int]
    job: str
    completed: bool
    def __init__(self, job: _Optional[str] = ..., completed: _Optional[bool] = ...) -> None: ...

class FetchModelRequest(_message.Message):
    __slots__ = ("digest", "offset")
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    digest: bytes
    offset: int
    def __init__(self, digest: _Optional[bytes] = ..., offset: _Optional[int] = ...) -> None: ...

class FetchModelResponse(_message.Message):
    __slots__ = ("header", "chunk")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    header: FetchModelHeader
    chunk: bytes
    def __init__(self, header: _Optional[_Union[FetchModelHeader, _Mapping]] = ..., chunk: _Optional[bytes] = ...) -> None: ...

class FetchModelHeader(_message.Message):
    __slots__ = ("total_bytes",)
    TOTAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    total_bytes: int
    def __init__(self, total_bytes: _Optional[int] = ...) -> None: ...
