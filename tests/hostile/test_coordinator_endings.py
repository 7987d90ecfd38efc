"""A coordinator that ends rounds to learn from it, or opens and registers more than there is room for."""

import itertools

import grpc
import pytest

from aggregator_node.admission import MAX_OPEN_ROUNDS
from cairn.protocol.messages import PROTOCOL
from cairn.protocol.statements import HEAD
from cairn.v1 import aggregator_pb2
from cairn.v1 import round_pb2 as pb
from tests.hostile.attacks import ABORTED, COHORT, INVALID, NewCaller, new_job, push_one_hots
from tests.hostile.audit import opened as opened_by
from tests.hostile.checks import bounded, one_hot, refusals, refuses
from tests.service.network import PROCESS, SECONDS, Network, refused

UNAVAILABLE = grpc.StatusCode.UNAVAILABLE
EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED


@pytest.fixture
def who(new_caller: NewCaller) -> str:
    return new_caller()


@pytest.mark.parametrize("pushed", [(), ("alice",), ("bob", "carol")])
def test_to_end_a_round_does_not_tell_who_had_pushed_by_then(
    network: Network, who: str, pushed: tuple[str, ...]
) -> None:
    round_ = new_job(network, who).open(("alice", "bob", "carol", "dave"))
    for owner in COHORT:
        round_.join(owner)
    for owner in pushed:
        round_.push(owner, one_hot(owner))
    round_.abort()
    last = list(round_.watch())[-1]
    assert last == aggregator_pb2.WatchRoundResponse(state=ABORTED, reason=pb.REASON_ABORTED)


def test_an_owner_that_declines_too_much_for_the_floor_tells_of_nobody_else(
    network: Network, who: str
) -> None:
    round_ = new_job(network, who).open(COHORT)
    for owner in COHORT:
        round_.join(owner)
    round_.push("alice", one_hot("alice"))
    round_.decline("bob", pb.REASON_TASK_FAILED)
    ended = round_.ends()
    assert (ended.state, ended.reason) == (ABORTED, "BELOW_FLOOR")
    assert ended.exclusions == {"bob": "NOT_COUNTED"}


def test_a_coordinator_cannot_open_rounds_without_end(
    network: Network, who: str, new_caller: NewCaller
) -> None:
    opened = [new_job(network, who).open(COHORT) for _ in range(MAX_OPEN_ROUNDS)]
    one_more = new_job(network, who)
    with refuses(network, f"coordinator/{who}", "OpenRound", UNAVAILABLE, "TOO_MUCH"):
        one_more.open(COHORT)
    new_job(network, new_caller()).open(COHORT)  # another's rounds have places of their own
    opened[0].abort()
    one_more.open(COHORT)


def test_a_schema_of_a_million_tensors_is_refused_before_they_become_objects(
    network: Network, who: str
) -> None:
    job = new_job(network, who)
    message = pb.JobSpec.FromString(job.body)
    message.name = "enormous"
    del message.schema.tensors[:]
    tensor = pb.TensorSpec(name="w", dtype=pb.DTYPE_F32).SerializeToString()
    field = bytes([0x0A, len(tensor)]) + tensor
    schema = field * 1_500_000
    size, varint = len(schema), b""
    while size:
        varint += bytes([size & 0x7F | (0x80 if size > 0x7F else 0)])
        size >>= 7
    body = message.SerializeToString() + b"\x5a" + varint + schema  # field 11, merged
    request = aggregator_pb2.RegisterJobRequest(job_spec=body, protocol=PROTOCOL, process=PROCESS)
    with bounded(network.node.pid, 400 << 20), refused(INVALID, "100000 tensors", "MALFORMED"):
        network.release(who).RegisterJob(request, timeout=SECONDS)
    assert 10_000_000 < len(body) < 16 << 20


def test_a_specification_beyond_the_limit_is_refused(network: Network, who: str) -> None:
    job = new_job(network, who)
    padding = b"\xfa\x3f" + b"\x80\x80\x80\x08" + bytes(1 << 24)  # field 1023, 16 MiB
    request = aggregator_pb2.RegisterJobRequest(
        job_spec=job.body + padding, protocol=PROTOCOL, process=PROCESS
    )
    with refused(EXHAUSTED, "at the most", "TOO_MUCH"):
        network.release(who).RegisterJob(request, timeout=SECONDS)


def test_a_statement_comes_with_a_head_behind_its_own_entry(network: Network, who: str) -> None:
    """Whoever asks for it would find out a copy of the state from before the release."""
    round_ = new_job(network, who).open(COHORT)
    push_one_hots(round_, COHORT)
    statement = round_.ends().statement
    request = aggregator_pb2.GetStatementRequest(manifest_digest=round_.digest)
    for owner in COHORT:
        answer = network.record(owner).GetStatement(request, timeout=SECONDS)
        head = pb.LedgerHead.FromString(
            opened_by(network.key, HEAD, answer.ledger_head.SerializeToString())
        )
        assert head.number > statement.ledger_number


def test_a_round_without_a_release_says_whether_it_is_open_or_has_ended(
    network: Network, who: str
) -> None:
    round_ = new_job(network, who).open(COHORT)
    request = aggregator_pb2.GetStatementRequest(manifest_digest=round_.digest)
    record = network.record("alice")
    known = len(refusals(network.state))
    answer = record.GetStatement(request, timeout=SECONDS)
    assert not answer.HasField("statement")
    assert answer.HasField("ledger_head")
    assert (
        len(refusals(network.state)) == known
    )  # owners ask on and on: a refusal each would fill the disk
    round_.abort()
    with refused(grpc.StatusCode.NOT_FOUND, "without a release", "ROUND_ENDED"):
        record.GetStatement(request, timeout=SECONDS)


def test_what_the_aggregator_writes_is_for_its_own_account_only(network: Network) -> None:
    files = [path for path in network.state.rglob("*") if path.is_file()]
    assert {"aggregator.sqlite", "aggregator.sqlite-wal"} <= {path.name for path in files}
    for path, bits in itertools.product(files, (0o040, 0o004, 0o020, 0o002)):
        assert not path.stat().st_mode & bits, path
