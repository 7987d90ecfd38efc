"""A coordinator that calls without end, while owners push."""

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import grpc

from cairn.model.schema import Schema, TensorSpec
from cairn.protocol.messages import PROTOCOL
from cairn.v1 import aggregator_pb2
from cairn.v1 import round_pb2 as pb
from tests.hostile.attacks import NewCaller, new_job
from tests.hostile.checks import bounded, refusals
from tests.scenarios.processes import PATIENCE
from tests.service.network import OWNERS, PROCESS, SECONDS, Network

CALLS = 10_000
CALLERS = 4
LARGE = Schema.of([TensorSpec("weight", "F32", (1 << 20,))])  # 4 MiB
GROWTH = 96 << 20  # five updates of 4 MiB and their sums, and what the calls under way hold


def test_ten_thousand_calls_do_not_keep_owners_from_pushing(
    network: Network, new_caller: NewCaller
) -> None:
    """Each owner pushes while four threads call under one certificate."""
    who = new_caller()
    job = new_job(network, who, schema=LARGE)
    opened = job.open(OWNERS)
    known = len(refusals(network.state))
    calls = _calls(network, who, job.body, opened.digest)
    begun, answers = threading.Event(), Counter[str]()
    threads = [
        threading.Thread(target=_flood, args=(calls, begun, answers)) for _ in range(CALLERS)
    ]
    with bounded(network.node.pid, GROWTH):
        for thread in threads:
            thread.start()
        assert begun.wait(SECONDS)
        for owner in OWNERS:
            opened.join(owner)
            opened.push(owner, bytes([len(owner)]) * LARGE.total_bytes)
        assert all(thread.is_alive() for thread in threads), "the flood was over too early"
        for thread in threads:
            thread.join(PATIENCE)
    assert sum(answers.values()) == CALLS
    assert not set(answers) - {"OK", "TOO_MUCH", "CONFLICT", "OUT_OF_TURN", "MALFORMED"}, answers
    assert opened.ends().statement.contributors == len(OWNERS)
    written = len(refusals(network.state)) - known
    assert 0 < written <= 60  # of a caller in an hour: the flood must not fill the disk


def _calls(
    network: Network, who: str, job_spec: bytes, manifest_digest: bytes
) -> Iterator[Callable[[], object]]:
    """A coordinator's calls, in turn; each is to be made by one thread."""
    release = network.release(who)
    job = pb.JobSpec.FromString(job_spec)
    another = aggregator_pb2.OpenRoundRequest(
        job=job.name,
        round=1,
        phase=pb.PHASE_TRAIN,
        cohort=job.owners[1:],
        base_digest=bytes(32),
        epoch=1,
    )
    known = aggregator_pb2.RegisterJobRequest(job_spec=job_spec, protocol=PROTOCOL, process=PROCESS)
    collect = aggregator_pb2.CollectReleaseRequest(manifest_digest=manifest_digest, epoch=1)
    makers: list[Callable[[], object]] = [
        lambda: release.OpenRound(another, timeout=SECONDS),
        lambda: release.RegisterJob(known, timeout=SECONDS),
        lambda: next(release.CollectRelease(collect, timeout=SECONDS)),
        lambda: release.OpenRound(aggregator_pb2.OpenRoundRequest(), timeout=SECONDS),
    ]
    return iter([makers[number % len(makers)] for number in range(CALLS)])


_TURN = threading.Lock()


def _flood(
    calls: Iterator[Callable[[], object]], begun: threading.Event, answers: Counter[str]
) -> None:
    while True:
        with _TURN:
            call = next(calls, None)
        if call is None:
            return
        answer = _answer(call)
        with _TURN:
            answers[answer] += 1
        begun.set()


def _answer(call: Callable[[], object]) -> str:
    try:
        call()
    except grpc.RpcError as error:
        failed: Any = error
        return str(dict(failed.trailing_metadata()).get("cairn-reason", failed.code()))
    return "OK"
