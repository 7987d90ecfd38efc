from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Dtype(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    DTYPE_UNSPECIFIED: _ClassVar[Dtype]
    DTYPE_BOOL: _ClassVar[Dtype]
    DTYPE_U8: _ClassVar[Dtype]
    DTYPE_I8: _ClassVar[Dtype]
    DTYPE_I16: _ClassVar[Dtype]
    DTYPE_F16: _ClassVar[Dtype]
    DTYPE_BF16: _ClassVar[Dtype]
    DTYPE_I32: _ClassVar[Dtype]
    DTYPE_F32: _ClassVar[Dtype]
    DTYPE_F64: _ClassVar[Dtype]
    DTYPE_I64: _ClassVar[Dtype]

class Weighting(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    WEIGHTING_UNSPECIFIED: _ClassVar[Weighting]
    WEIGHTING_EQUAL: _ClassVar[Weighting]
    WEIGHTING_EXAMPLES: _ClassVar[Weighting]

class Rule(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    RULE_UNSPECIFIED: _ClassVar[Rule]
    RULE_MEAN: _ClassVar[Rule]
    RULE_SUM: _ClassVar[Rule]
    RULE_NORM_BOUNDED_MEAN: _ClassVar[Rule]
    RULE_TRIMMED_MEAN: _ClassVar[Rule]
    RULE_BUCKETED_MEDIAN: _ClassVar[Rule]
    RULE_MULTI_KRUM: _ClassVar[Rule]
    RULE_GEOMETRIC_MEDIAN: _ClassVar[Rule]
    RULE_CENTRED_CLIPPING: _ClassVar[Rule]

class Optimizer(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    OPTIMIZER_UNSPECIFIED: _ClassVar[Optimizer]
    OPTIMIZER_NONE: _ClassVar[Optimizer]
    OPTIMIZER_SGD: _ClassVar[Optimizer]
    OPTIMIZER_ADAGRAD: _ClassVar[Optimizer]
    OPTIMIZER_ADAM: _ClassVar[Optimizer]
    OPTIMIZER_YOGI: _ClassVar[Optimizer]

class Content(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    CONTENT_UNSPECIFIED: _ClassVar[Content]
    CONTENT_WEIGHTS: _ClassVar[Content]
    CONTENT_GRADIENTS: _ClassVar[Content]

class Chain(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    CHAIN_UNSPECIFIED: _ClassVar[Chain]
    CHAIN_STRICT: _ClassVar[Chain]

class Encoding(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ENCODING_UNSPECIFIED: _ClassVar[Encoding]
    ENCODING_WHOLE: _ClassVar[Encoding]
    ENCODING_BF16_DELTAS: _ClassVar[Encoding]
    ENCODING_INT8_DELTAS: _ClassVar[Encoding]

class Phase(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PHASE_UNSPECIFIED: _ClassVar[Phase]
    PHASE_TRAIN: _ClassVar[Phase]
    PHASE_EVALUATE: _ClassVar[Phase]

class Reason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    REASON_UNSPECIFIED: _ClassVar[Reason]
    REASON_LEASE_EXPIRED: _ClassVar[Reason]
    REASON_DEADLINE: _ClassVar[Reason]
    REASON_BELOW_FLOOR: _ClassVar[Reason]
    REASON_ABORTED: _ClassVar[Reason]
    REASON_AGGREGATOR_RESTARTED: _ClassVar[Reason]
    REASON_UNKNOWN_TASK: _ClassVar[Reason]
    REASON_SETTING_REFUSED: _ClassVar[Reason]
    REASON_FLOOR_TOO_LOW: _ClassVar[Reason]
    REASON_STALE_ROUND: _ClassVar[Reason]
    REASON_BASE_MISMATCH: _ClassVar[Reason]
    REASON_SCHEMA_MISMATCH: _ClassVar[Reason]
    REASON_TASK_FAILED: _ClassVar[Reason]
    REASON_WRONG_TENSORS: _ClassVar[Reason]
    REASON_NON_FINITE: _ClassVar[Reason]
    REASON_EXAMPLES_REFUSED: _ClassVar[Reason]
    REASON_JOB_REFUSED: _ClassVar[Reason]
    REASON_FETCH_FAILED: _ClassVar[Reason]
    REASON_STOPPING: _ClassVar[Reason]
    REASON_CORRUPT_UPDATE: _ClassVar[Reason]
    REASON_STORAGE_FAILED: _ClassVar[Reason]
    REASON_COHORT_TOO_SMALL: _ClassVar[Reason]
    REASON_UNKNOWN_OWNER: _ClassVar[Reason]
    REASON_OUT_OF_TURN: _ClassVar[Reason]
    REASON_COHORT_DIFFERENCE: _ClassVar[Reason]
    REASON_TOO_MANY_ABORTS: _ClassVar[Reason]
    REASON_MAGNITUDE_REFUSED: _ClassVar[Reason]
    REASON_TOO_MUCH: _ClassVar[Reason]
    REASON_ROUND_ENDED: _ClassVar[Reason]
    REASON_CONFLICT: _ClassVar[Reason]
    REASON_ROLLED_BACK: _ClassVar[Reason]
    REASON_NOT_ALLOWED: _ClassVar[Reason]
    REASON_MALFORMED: _ClassVar[Reason]
    REASON_NOT_FOUND: _ClassVar[Reason]
    REASON_NO_DEADLINE: _ClassVar[Reason]
    REASON_OTHER_VERSION: _ClassVar[Reason]
    REASON_UNTRUSTED_COHORT: _ClassVar[Reason]
    REASON_MODEL_SUSPECT: _ClassVar[Reason]
    REASON_TOO_FEW_EXAMPLES: _ClassVar[Reason]
    REASON_TOO_MANY_ROUNDS: _ClassVar[Reason]
    REASON_CHAIN_BROKEN: _ClassVar[Reason]
    REASON_ENCODING_REFUSED: _ClassVar[Reason]
    REASON_UPDATE_LOST: _ClassVar[Reason]
    REASON_FENCED: _ClassVar[Reason]
    REASON_MIXED_GROUPS: _ClassVar[Reason]
    REASON_NOT_COUNTED: _ClassVar[Reason]
    REASON_FAILURES_SPENT: _ClassVar[Reason]
    REASON_RULE_REFUSED: _ClassVar[Reason]
    REASON_MODEL_MISSING: _ClassVar[Reason]
    REASON_BUDGET_SPENT: _ClassVar[Reason]
DTYPE_UNSPECIFIED: Dtype
DTYPE_BOOL: Dtype
DTYPE_U8: Dtype
DTYPE_I8: Dtype
DTYPE_I16: Dtype
DTYPE_F16: Dtype
DTYPE_BF16: Dtype
DTYPE_I32: Dtype
DTYPE_F32: Dtype
DTYPE_F64: Dtype
DTYPE_I64: Dtype
WEIGHTING_UNSPECIFIED: Weighting
WEIGHTING_EQUAL: Weighting
WEIGHTING_EXAMPLES: Weighting
RULE_UNSPECIFIED: Rule
RULE_MEAN: Rule
RULE_SUM: Rule
RULE_NORM_BOUNDED_MEAN: Rule
RULE_TRIMMED_MEAN: Rule
RULE_BUCKETED_MEDIAN: Rule
RULE_MULTI_KRUM: Rule
RULE_GEOMETRIC_MEDIAN: Rule
RULE_CENTRED_CLIPPING: Rule
OPTIMIZER_UNSPECIFIED: Optimizer
OPTIMIZER_NONE: Optimizer
OPTIMIZER_SGD: Optimizer
OPTIMIZER_ADAGRAD: Optimizer
OPTIMIZER_ADAM: Optimizer
OPTIMIZER_YOGI: Optimizer
CONTENT_UNSPECIFIED: Content
CONTENT_WEIGHTS: Content
CONTENT_GRADIENTS: Content
CHAIN_UNSPECIFIED: Chain
CHAIN_STRICT: Chain
ENCODING_UNSPECIFIED: Encoding
ENCODING_WHOLE: Encoding
ENCODING_BF16_DELTAS: Encoding
ENCODING_INT8_DELTAS: Encoding
PHASE_UNSPECIFIED: Phase
PHASE_TRAIN: Phase
PHASE_EVALUATE: Phase
REASON_UNSPECIFIED: Reason
REASON_LEASE_EXPIRED: Reason
REASON_DEADLINE: Reason
REASON_BELOW_FLOOR: Reason
REASON_ABORTED: Reason
REASON_AGGREGATOR_RESTARTED: Reason
REASON_UNKNOWN_TASK: Reason
REASON_SETTING_REFUSED: Reason
REASON_FLOOR_TOO_LOW: Reason
REASON_STALE_ROUND: Reason
REASON_BASE_MISMATCH: Reason
REASON_SCHEMA_MISMATCH: Reason
REASON_TASK_FAILED: Reason
REASON_WRONG_TENSORS: Reason
REASON_NON_FINITE: Reason
REASON_EXAMPLES_REFUSED: Reason
REASON_JOB_REFUSED: Reason
REASON_FETCH_FAILED: Reason
REASON_STOPPING: Reason
REASON_CORRUPT_UPDATE: Reason
REASON_STORAGE_FAILED: Reason
REASON_COHORT_TOO_SMALL: Reason
REASON_UNKNOWN_OWNER: Reason
REASON_OUT_OF_TURN: Reason
REASON_COHORT_DIFFERENCE: Reason
REASON_TOO_MANY_ABORTS: Reason
REASON_MAGNITUDE_REFUSED: Reason
REASON_TOO_MUCH: Reason
REASON_ROUND_ENDED: Reason
REASON_CONFLICT: Reason
REASON_ROLLED_BACK: Reason
REASON_NOT_ALLOWED: Reason
REASON_MALFORMED: Reason
REASON_NOT_FOUND: Reason
REASON_NO_DEADLINE: Reason
REASON_OTHER_VERSION: Reason
REASON_UNTRUSTED_COHORT: Reason
REASON_MODEL_SUSPECT: Reason
REASON_TOO_FEW_EXAMPLES: Reason
REASON_TOO_MANY_ROUNDS: Reason
REASON_CHAIN_BROKEN: Reason
REASON_ENCODING_REFUSED: Reason
REASON_UPDATE_LOST: Reason
REASON_FENCED: Reason
REASON_MIXED_GROUPS: Reason
REASON_NOT_COUNTED: Reason
REASON_FAILURES_SPENT: Reason
REASON_RULE_REFUSED: Reason
REASON_MODEL_MISSING: Reason
REASON_BUDGET_SPENT: Reason

class Signed(_message.Message):
    __slots__ = ("type", "body", "signature")
    TYPE_FIELD_NUMBER: _ClassVar[int]
    BODY_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    type: str
    body: bytes
    signature: bytes
    def __init__(self, type: _Optional[str] = ..., body: _Optional[bytes] = ..., signature: _Optional[bytes] = ...) -> None: ...

class TensorSpec(_message.Message):
    __slots__ = ("name", "dtype", "shape")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    name: str
    dtype: Dtype
    shape: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, name: _Optional[str] = ..., dtype: _Optional[_Union[Dtype, str]] = ..., shape: _Optional[_Iterable[int]] = ...) -> None: ...

class ModelSchema(_message.Message):
    __slots__ = ("tensors",)
    TENSORS_FIELD_NUMBER: _ClassVar[int]
    tensors: _containers.RepeatedCompositeFieldContainer[TensorSpec]
    def __init__(self, tensors: _Optional[_Iterable[_Union[TensorSpec, _Mapping]]] = ...) -> None: ...

class Aggregation(_message.Message):
    __slots__ = ("content", "rule", "rule_numbers", "optimizer", "optimizer_numbers")
    class RuleNumbersEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    class OptimizerNumbersEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    RULE_FIELD_NUMBER: _ClassVar[int]
    RULE_NUMBERS_FIELD_NUMBER: _ClassVar[int]
    OPTIMIZER_FIELD_NUMBER: _ClassVar[int]
    OPTIMIZER_NUMBERS_FIELD_NUMBER: _ClassVar[int]
    content: Content
    rule: Rule
    rule_numbers: _containers.ScalarMap[str, float]
    optimizer: Optimizer
    optimizer_numbers: _containers.ScalarMap[str, float]
    def __init__(self, content: _Optional[_Union[Content, str]] = ..., rule: _Optional[_Union[Rule, str]] = ..., rule_numbers: _Optional[_Mapping[str, float]] = ..., optimizer: _Optional[_Union[Optimizer, str]] = ..., optimizer_numbers: _Optional[_Mapping[str, float]] = ...) -> None: ...

class Group(_message.Message):
    __slots__ = ("owners",)
    OWNERS_FIELD_NUMBER: _ClassVar[int]
    owners: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, owners: _Optional[_Iterable[str]] = ...) -> None: ...

class JobSpec(_message.Message):
    __slots__ = ("federation", "name", "task", "settings", "owners", "floor", "rounds", "aggregation", "weighting", "chain", "schema", "round_deadline_seconds", "min_examples", "max_examples", "encoding", "groups")
    class SettingsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    FEDERATION_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    TASK_FIELD_NUMBER: _ClassVar[int]
    SETTINGS_FIELD_NUMBER: _ClassVar[int]
    OWNERS_FIELD_NUMBER: _ClassVar[int]
    FLOOR_FIELD_NUMBER: _ClassVar[int]
    ROUNDS_FIELD_NUMBER: _ClassVar[int]
    AGGREGATION_FIELD_NUMBER: _ClassVar[int]
    WEIGHTING_FIELD_NUMBER: _ClassVar[int]
    CHAIN_FIELD_NUMBER: _ClassVar[int]
    SCHEMA_FIELD_NUMBER: _ClassVar[int]
    ROUND_DEADLINE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    MIN_EXAMPLES_FIELD_NUMBER: _ClassVar[int]
    MAX_EXAMPLES_FIELD_NUMBER: _ClassVar[int]
    ENCODING_FIELD_NUMBER: _ClassVar[int]
    GROUPS_FIELD_NUMBER: _ClassVar[int]
    federation: str
    name: str
    task: str
    settings: _containers.ScalarMap[str, float]
    owners: _containers.RepeatedScalarFieldContainer[str]
    floor: int
    rounds: int
    aggregation: Aggregation
    weighting: Weighting
    chain: Chain
    schema: ModelSchema
    round_deadline_seconds: int
    min_examples: int
    max_examples: int
    encoding: Encoding
    groups: _containers.RepeatedCompositeFieldContainer[Group]
    def __init__(self, federation: _Optional[str] = ..., name: _Optional[str] = ..., task: _Optional[str] = ..., settings: _Optional[_Mapping[str, float]] = ..., owners: _Optional[_Iterable[str]] = ..., floor: _Optional[int] = ..., rounds: _Optional[int] = ..., aggregation: _Optional[_Union[Aggregation, _Mapping]] = ..., weighting: _Optional[_Union[Weighting, str]] = ..., chain: _Optional[_Union[Chain, str]] = ..., schema: _Optional[_Union[ModelSchema, _Mapping]] = ..., round_deadline_seconds: _Optional[int] = ..., min_examples: _Optional[int] = ..., max_examples: _Optional[int] = ..., encoding: _Optional[_Union[Encoding, str]] = ..., groups: _Optional[_Iterable[_Union[Group, _Mapping]]] = ...) -> None: ...

class RoundManifest(_message.Message):
    __slots__ = ("federation", "job", "job_digest", "round", "phase", "cohort", "base_digest", "previous_release_digest", "aggregation", "weighting", "floor", "deadline_unix_ms", "lease_seconds", "nonce", "ledger_head", "protocol", "ledger_number", "software", "encoding", "largest_share")
    FEDERATION_FIELD_NUMBER: _ClassVar[int]
    JOB_FIELD_NUMBER: _ClassVar[int]
    JOB_DIGEST_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    PHASE_FIELD_NUMBER: _ClassVar[int]
    COHORT_FIELD_NUMBER: _ClassVar[int]
    BASE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    PREVIOUS_RELEASE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    AGGREGATION_FIELD_NUMBER: _ClassVar[int]
    WEIGHTING_FIELD_NUMBER: _ClassVar[int]
    FLOOR_FIELD_NUMBER: _ClassVar[int]
    DEADLINE_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    LEASE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    NONCE_FIELD_NUMBER: _ClassVar[int]
    LEDGER_HEAD_FIELD_NUMBER: _ClassVar[int]
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    LEDGER_NUMBER_FIELD_NUMBER: _ClassVar[int]
    SOFTWARE_FIELD_NUMBER: _ClassVar[int]
    ENCODING_FIELD_NUMBER: _ClassVar[int]
    LARGEST_SHARE_FIELD_NUMBER: _ClassVar[int]
    federation: str
    job: str
    job_digest: bytes
    round: int
    phase: Phase
    cohort: _containers.RepeatedScalarFieldContainer[str]
    base_digest: bytes
    previous_release_digest: bytes
    aggregation: Aggregation
    weighting: Weighting
    floor: int
    deadline_unix_ms: int
    lease_seconds: int
    nonce: bytes
    ledger_head: bytes
    protocol: int
    ledger_number: int
    software: str
    encoding: Encoding
    largest_share: float
    def __init__(self, federation: _Optional[str] = ..., job: _Optional[str] = ..., job_digest: _Optional[bytes] = ..., round: _Optional[int] = ..., phase: _Optional[_Union[Phase, str]] = ..., cohort: _Optional[_Iterable[str]] = ..., base_digest: _Optional[bytes] = ..., previous_release_digest: _Optional[bytes] = ..., aggregation: _Optional[_Union[Aggregation, _Mapping]] = ..., weighting: _Optional[_Union[Weighting, str]] = ..., floor: _Optional[int] = ..., deadline_unix_ms: _Optional[int] = ..., lease_seconds: _Optional[int] = ..., nonce: _Optional[bytes] = ..., ledger_head: _Optional[bytes] = ..., protocol: _Optional[int] = ..., ledger_number: _Optional[int] = ..., software: _Optional[str] = ..., encoding: _Optional[_Union[Encoding, str]] = ..., largest_share: _Optional[float] = ...) -> None: ...

class Exclusion(_message.Message):
    __slots__ = ("owner", "reason")
    OWNER_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    owner: str
    reason: Reason
    def __init__(self, owner: _Optional[str] = ..., reason: _Optional[_Union[Reason, str]] = ...) -> None: ...

class ReleaseStatement(_message.Message):
    __slots__ = ("manifest_digest", "federation", "job", "round", "phase", "release_digest", "base_digest", "contributors", "exclusions", "aggregation", "weighting", "metrics", "ledger_head", "sealed_unix_ms", "software", "ledger_number", "floor", "commitments", "encoding")
    class MetricsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    MANIFEST_DIGEST_FIELD_NUMBER: _ClassVar[int]
    FEDERATION_FIELD_NUMBER: _ClassVar[int]
    JOB_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    PHASE_FIELD_NUMBER: _ClassVar[int]
    RELEASE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    BASE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    CONTRIBUTORS_FIELD_NUMBER: _ClassVar[int]
    EXCLUSIONS_FIELD_NUMBER: _ClassVar[int]
    AGGREGATION_FIELD_NUMBER: _ClassVar[int]
    WEIGHTING_FIELD_NUMBER: _ClassVar[int]
    METRICS_FIELD_NUMBER: _ClassVar[int]
    LEDGER_HEAD_FIELD_NUMBER: _ClassVar[int]
    SEALED_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    SOFTWARE_FIELD_NUMBER: _ClassVar[int]
    LEDGER_NUMBER_FIELD_NUMBER: _ClassVar[int]
    FLOOR_FIELD_NUMBER: _ClassVar[int]
    COMMITMENTS_FIELD_NUMBER: _ClassVar[int]
    ENCODING_FIELD_NUMBER: _ClassVar[int]
    manifest_digest: bytes
    federation: str
    job: str
    round: int
    phase: Phase
    release_digest: bytes
    base_digest: bytes
    contributors: int
    exclusions: _containers.RepeatedCompositeFieldContainer[Exclusion]
    aggregation: Aggregation
    weighting: Weighting
    metrics: _containers.ScalarMap[str, float]
    ledger_head: bytes
    sealed_unix_ms: int
    software: str
    ledger_number: int
    floor: int
    commitments: _containers.RepeatedScalarFieldContainer[bytes]
    encoding: Encoding
    def __init__(self, manifest_digest: _Optional[bytes] = ..., federation: _Optional[str] = ..., job: _Optional[str] = ..., round: _Optional[int] = ..., phase: _Optional[_Union[Phase, str]] = ..., release_digest: _Optional[bytes] = ..., base_digest: _Optional[bytes] = ..., contributors: _Optional[int] = ..., exclusions: _Optional[_Iterable[_Union[Exclusion, _Mapping]]] = ..., aggregation: _Optional[_Union[Aggregation, _Mapping]] = ..., weighting: _Optional[_Union[Weighting, str]] = ..., metrics: _Optional[_Mapping[str, float]] = ..., ledger_head: _Optional[bytes] = ..., sealed_unix_ms: _Optional[int] = ..., software: _Optional[str] = ..., ledger_number: _Optional[int] = ..., floor: _Optional[int] = ..., commitments: _Optional[_Iterable[bytes]] = ..., encoding: _Optional[_Union[Encoding, str]] = ...) -> None: ...

class LedgerHead(_message.Message):
    __slots__ = ("federation", "number", "head")
    FEDERATION_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    HEAD_FIELD_NUMBER: _ClassVar[int]
    federation: str
    number: int
    head: bytes
    def __init__(self, federation: _Optional[str] = ..., number: _Optional[int] = ..., head: _Optional[bytes] = ...) -> None: ...
