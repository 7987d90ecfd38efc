"""The bytes of every message of the contract, made once and kept: a node of today must read and write them.

The folder is named after the protocol's version. Where a test here fails because a message was changed
on purpose, PROTOCOL goes up and gets a folder of its own.
"""

from pathlib import Path

import pytest
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from cairn.protocol.messages import PROTOCOL
from cairn.v1 import aggregator_pb2 as agg
from cairn.v1 import coordinator_pb2 as coord
from cairn.v1 import round_pb2 as pb

FOLDER = Path(__file__).parent / f"protocol_{PROTOCOL}"


def digest(letter: str) -> bytes:
    return letter.encode() * 32


SIGNED = pb.Signed(type="cairn.v1.RoundManifest", body=b"\x00body\xff", signature=b"s" * 64)
GROUPS = [
    pb.Group(owners=["alice", "carol", "erin"]),
    pb.Group(owners=["bob", "dave", "frank"]),
]
TENSOR = pb.TensorSpec(name="layer.weight", dtype=pb.DTYPE_BF16, shape=[2, 0, 300])
SCHEMA = pb.ModelSchema(tensors=[TENSOR, pb.TensorSpec(name="n", dtype=pb.DTYPE_I64)])
AGGREGATION = pb.Aggregation(
    content=pb.CONTENT_GRADIENTS,
    rule=pb.RULE_TRIMMED_MEAN,
    rule_numbers={"trim": 0.25},
    optimizer=pb.OPTIMIZER_SGD,
    optimizer_numbers={"lr": 0.5, "momentum": 0.875},
)
COLUMN = pb.Column(name="mean radius", low=-0.5, high=27.75, bins=300)
STATISTICS = pb.Statistics(columns=[COLUMN], min_cell=10)
EXCLUSION = pb.Exclusion(owner="dora", reason=pb.REASON_CHAIN_BROKEN)
PRIVACY = pb.Privacy(epsilon=3.125, delta=1e-5)
HEADER = agg.UpdateHeader(
    manifest_digest=digest("m"),
    base_digest=digest("b"),
    examples=2147483647,
    metrics={"loss": 0.25, "accuracy": 0.875},
    total_bytes=1 << 33,
    seen_head=SIGNED,
    salt=digest("s"),
)
MODEL_HEADER = agg.SubmitModelHeader(job="tumours", epoch=5, digest=digest("b"))
COMMIT = agg.UpdateCommit(payload_digest=digest("p"))
RELEASE_HEADER = agg.ReleaseHeader(statement=SIGNED, total_bytes=1 << 33)
ENTRY = agg.LedgerEntry(number=7, kind="release", body=b'{"job":"tumours"}', head=digest("h"))
INVITATION = coord.Invitation(manifest=SIGNED, job_spec=b"\x0a\x07clinics")
OUTCOME = coord.Outcome(manifest_digest=digest("m"), statement=SIGNED, reason=pb.REASON_ABORTED)
FINISHED = coord.Finished(job="tumours", completed=True)
FETCH_HEADER = coord.FetchModelHeader(total_bytes=1 << 33)

# One for each message; where only one of several fields can be set, one for each of them.
EXPECTED: dict[str, Message] = {
    "Signed": SIGNED,
    "TensorSpec": TENSOR,
    "ModelSchema": SCHEMA,
    "Group": GROUPS[0],
    "Aggregation": AGGREGATION,
    "Column": COLUMN,
    "Statistics": STATISTICS,
    "JobSpec": pb.JobSpec(
        federation="clinics",
        name="tumours",
        task="segment",
        settings={"steps": 5.0, "lr": 0.1},
        owners=["alice", "bob", "carol", "dave", "erin", "frank"],
        floor=3,
        rounds=20,
        aggregation=AGGREGATION,
        weighting=pb.WEIGHTING_EXAMPLES,
        chain=pb.CHAIN_STRICT,
        schema=SCHEMA,
        round_deadline_seconds=604800,
        min_examples=10,
        max_examples=5000,
        encoding=pb.ENCODING_INT8_DELTAS,
        groups=GROUPS,
        statistics=STATISTICS,
    ),
    "RoundManifest": pb.RoundManifest(
        federation="clinics",
        job="tumours",
        job_digest=digest("j"),
        round=300,
        phase=pb.PHASE_EVALUATE,
        cohort=["alice", "bob", "carol"],
        base_digest=digest("b"),
        previous_release_digest=digest("p"),
        aggregation=AGGREGATION,
        weighting=pb.WEIGHTING_EXAMPLES,
        floor=3,
        deadline_unix_ms=1_700_000_000_123,
        lease_seconds=15,
        nonce=digest("n"),
        ledger_head=digest("l"),
        protocol=5,
        ledger_number=601,
        software="0.2.0",
        encoding=pb.ENCODING_WHOLE,
        largest_share=0.375,
        draw_commitment=digest("d"),
    ),
    "Exclusion": EXCLUSION,
    "ReleaseStatement": pb.ReleaseStatement(
        manifest_digest=digest("m"),
        federation="clinics",
        job="tumours",
        round=300,
        phase=pb.PHASE_TRAIN,
        release_digest=digest("r"),
        base_digest=digest("b"),
        contributors=3,
        exclusions=[EXCLUSION],
        aggregation=AGGREGATION,
        weighting=pb.WEIGHTING_EQUAL,
        metrics={"loss": 0.25, "accuracy": 0.875},
        ledger_head=digest("l"),
        sealed_unix_ms=1_700_000_000_456,
        software="0.2.0",
        ledger_number=602,
        floor=3,
        commitments=[digest("1"), digest("2"), digest("3")],
        encoding=pb.ENCODING_BF16_DELTAS,
        privacy=PRIVACY,
        draw_seed=digest("e"),
    ),
    "Privacy": PRIVACY,
    "LedgerHead": pb.LedgerHead(federation="clinics", number=603, head=digest("h")),
    "JoinRoundRequest": agg.JoinRoundRequest(
        manifest_digest=digest("m"),
        join=True,
        reason=pb.REASON_STOPPING,
        seen_head=SIGNED,
        protocol=5,
        software="0.2.0",
    ),
    "JoinRoundResponse": agg.JoinRoundResponse(
        lease_seconds=15,
        update_accepted=True,
        open_seconds=600,
        ledger_head=SIGNED,
        queue_place=2,
    ),
    "SubmitUpdateRequest.header": agg.SubmitUpdateRequest(header=HEADER),
    "SubmitUpdateRequest.chunk": agg.SubmitUpdateRequest(chunk=b"\x00\x01\xfe\xff"),
    "SubmitUpdateRequest.commit": agg.SubmitUpdateRequest(commit=COMMIT),
    "UpdateHeader": HEADER,
    "UpdateCommit": COMMIT,
    "SubmitUpdateResponse": agg.SubmitUpdateResponse(receipt=SIGNED),
    "Receipt": agg.Receipt(
        manifest_digest=digest("m"),
        owner="alice",
        payload_digest=digest("p"),
        examples=120,
        metrics={"loss": 0.25, "accuracy": 0.875},
        salt=digest("s"),
    ),
    "GetReceiptRequest": agg.GetReceiptRequest(
        manifest_digest=digest("m"),
        payload_digest=digest("p"),
        examples=120,
        metrics={"loss": 0.25},
        salt=digest("s"),
    ),
    "GetReceiptResponse": agg.GetReceiptResponse(receipt=SIGNED),
    "RegisterJobRequest": agg.RegisterJobRequest(
        job_spec=b"\x0a\x07clinics",
        protocol=5,
        software="0.2.0",
        process=digest("p"),
        ended=True,
    ),
    "RegisterJobResponse": agg.RegisterJobResponse(
        floor=3, last_round=300, open_manifest=SIGNED, last_statement=SIGNED, released=299, epoch=4
    ),
    "SubmitModelRequest.header": agg.SubmitModelRequest(header=MODEL_HEADER),
    "SubmitModelRequest.chunk": agg.SubmitModelRequest(chunk=b"\x00\x01\xfe\xff"),
    "SubmitModelHeader": MODEL_HEADER,
    "SubmitModelResponse": agg.SubmitModelResponse(),
    "OpenRoundRequest": agg.OpenRoundRequest(
        job="tumours",
        round=301,
        phase=pb.PHASE_TRAIN,
        cohort=["alice", "bob", "carol"],
        base_digest=digest("b"),
        epoch=4,
    ),
    "OpenRoundResponse": agg.OpenRoundResponse(manifest=SIGNED),
    "WatchRoundRequest": agg.WatchRoundRequest(manifest_digest=digest("m"), epoch=4),
    "WatchRoundResponse": agg.WatchRoundResponse(
        state=agg.ROUND_STATE_ABORTED, reason=pb.REASON_BELOW_FLOOR, exclusions=[EXCLUSION]
    ),
    "CollectReleaseRequest": agg.CollectReleaseRequest(
        manifest_digest=digest("m"), offset=1 << 33, epoch=4
    ),
    "CollectReleaseResponse.header": agg.CollectReleaseResponse(header=RELEASE_HEADER),
    "CollectReleaseResponse.chunk": agg.CollectReleaseResponse(chunk=b"\x00\x01\xfe\xff"),
    "ReleaseHeader": RELEASE_HEADER,
    "AbortRoundRequest": agg.AbortRoundRequest(manifest_digest=digest("m"), epoch=4),
    "AbortRoundResponse": agg.AbortRoundResponse(),
    "GetStatementRequest": agg.GetStatementRequest(manifest_digest=digest("m"), seen_head=SIGNED),
    "GetStatementResponse": agg.GetStatementResponse(statement=SIGNED, ledger_head=SIGNED),
    "ListEntriesRequest": agg.ListEntriesRequest(first=1 << 40, limit=1000),
    "ListEntriesResponse": agg.ListEntriesResponse(entries=[ENTRY, ENTRY], head=SIGNED),
    "LedgerEntry": ENTRY,
    "AttendRequest": coord.AttendRequest(federation="clinics", protocol=5, software="0.2.0"),
    "AttendResponse.invitation": coord.AttendResponse(invitation=INVITATION),
    "AttendResponse.outcome": coord.AttendResponse(outcome=OUTCOME),
    "AttendResponse.finished": coord.AttendResponse(finished=FINISHED),
    "Invitation": INVITATION,
    "Outcome": OUTCOME,
    "Finished": FINISHED,
    "FetchModelRequest": coord.FetchModelRequest(digest=digest("b"), offset=1 << 33),
    "FetchModelResponse.header": coord.FetchModelResponse(header=FETCH_HEADER),
    "FetchModelResponse.chunk": coord.FetchModelResponse(chunk=b"\x00\x01\xfe\xff"),
    "FetchModelHeader": FETCH_HEADER,
}


def golden(name: str) -> bytes:
    return bytes.fromhex((FOLDER / f"{name}.hex").read_text(encoding="ascii"))


def fields_of_the_contract() -> set[str]:
    """Every field of every message; a message without fields stands for itself."""
    return {
        field.full_name if field else message.full_name
        for module in (pb, agg, coord)
        for message in module.DESCRIPTOR.message_types_by_name.values()
        for field in (list(message.fields) or [None])
    }


@pytest.mark.parametrize("name", EXPECTED)
def test_a_golden_message_is_read_as_what_it_was(name: str) -> None:
    expected = EXPECTED[name]
    read = type(expected).FromString(golden(name))
    for field in expected.DESCRIPTOR.fields:
        assert getattr(read, field.name) == getattr(expected, field.name), field.name
    assert read == expected  # and it has no unknown fields


@pytest.mark.parametrize("name", EXPECTED)
def test_a_golden_message_is_written_to_the_same_bytes(name: str) -> None:
    assert EXPECTED[name].SerializeToString(deterministic=True) == golden(name)


def test_there_is_a_golden_file_for_every_message_and_no_other() -> None:
    messages = {name for m in (pb, agg, coord) for name in m.DESCRIPTOR.message_types_by_name}
    assert {name.partition(".")[0] for name in EXPECTED} == messages
    assert {path.name for path in FOLDER.iterdir()} == {
        "enums.txt",
        *(f"{name}.hex" for name in EXPECTED),
    }


def test_every_field_of_the_contract_is_in_a_golden_file() -> None:
    found = set()
    for message in EXPECTED.values():
        set_fields: list[FieldDescriptor | None] = [field for field, _ in message.ListFields()]
        if not message.DESCRIPTOR.fields:
            set_fields.append(None)
        found |= {f.full_name if f else message.DESCRIPTOR.full_name for f in set_fields}
    assert found == fields_of_the_contract()


def test_the_enums_of_the_contract_keep_their_names_and_numbers() -> None:
    found = [
        f"{value.number} {value.name}"
        for module in (pb, agg, coord)
        for enum in module.DESCRIPTOR.enum_types_by_name.values()
        for value in enum.values
    ]
    assert found == (FOLDER / "enums.txt").read_text(encoding="ascii").splitlines()
