"""A coordinator that calls without end, while owners push."""

import itertools
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, Self

import grpc

from cairn.model.schema import Schema, TensorSpec
from cairn.protocol.messages import PROTOCOL
from cairn.v1 import aggregator_pb2
from cairn.v1 import round_pb2 as pb
from tests.hostile.attacks import NewCaller, new_job
from tests.hostile.checks import bounded, refusals
from tests.scenarios.processes import PATIENCE, until
from tests.service.network import OWNERS, PROCESS, SECONDS, Network

CALLS = 1_000  # at least
CALLERS = 4
LARGE = Schema.of([TensorSpec("weight", "F32", (1 << 20,))])  # 4 MiB
GROWTH = 96 << 20  # five updates of 4 MiB and their sums, and what the calls under way hold


def test_calls_without_end_do_not_keep_owners_from_pushing(
    network: Network, new_caller: NewCaller
) -> None:
    """Each owner pushes while four threads call under one certificate, until all have pushed."""
    who = new_caller()
    job = new_job(network, who, schema=LARGE)
    opened = job.open(OWNERS)
    known = len(refusals(network.state))
    calls = _calls(network, who, job.body, opened.digest)
    flood = Flood(calls)
    with bounded(network.node.pid, GROWTH), flood:
        until(lambda: flood.answers.total() > CALLERS, "the flood has begun")
        for owner in OWNERS:
            opened.join(owner)
            opened.push(owner, bytes([len(owner)]) * LARGE.total_bytes)
        until(lambda: flood.answers.total() >= CALLS, "the flood was one")
    answers = flood.answers
    assert not set(answers) - {"OK", "TOO_MUCH", "CONFLICT", "OUT_OF_TURN", "MALFORMED"}, answers
    assert opened.ends().statement.contributors == len(OWNERS)
    written = len(refusals(network.state)) - known
    assert 0 < written <= 60  # of a caller in an hour: the flood must not fill the disk


def _calls(
    network: Network, who: str, job_spec: bytes, manifest_digest: bytes
) -> Iterator[Callable[[], object]]:
    """A coordinator's calls, in turn and without end; each is to be made by one thread."""
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
    return itertools.cycle(makers)


class Flood:
    """Calls from several threads for as long as what is inside lasts."""

    def __init__(self, calls: Iterator[Callable[[], object]]) -> None:
        self.answers = Counter[str]()
        self._calls = calls
        self._turn = threading.Lock()
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._call) for _ in range(CALLERS)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(PATIENCE)

    def _call(self) -> None:
        while not self._over.is_set():
            with self._turn:
                call = next(self._calls)
            answer = _answer(call)
            with self._turn:
                self.answers[answer] += 1


def _answer(call: Callable[[], object]) -> str:
    try:
        call()
    except grpc.RpcError as error:
        failed: Any = error
        return str(dict(failed.trailing_metadata()).get("cairn-reason", failed.code()))
    return "OK"
