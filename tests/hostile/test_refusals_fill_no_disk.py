"""Callers that are refused again and again: what that leaves on the disk is bounded, and nothing is uncounted.

Two owners, one of them on no roster, make the coordinator's calls over real connections.
"""

import json
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from cairn.v1 import coordinator_pb2
from cairn.v1 import round_pb2 as pb
from tests.hostile.checks import Entry, refusals
from tests.hostile.stage import Stage, manifest, signed
from tests.scenarios.processes import until
from tests.service.network import SECONDS, Network
from tests.warm.start import BIN, run

CALLS = 2500
CALLERS = {"alice": "owner/alice", "mallory": "owner/mallory"}  # on the roster, and not
ENTRIES_OF_CALLER = 60  # an hour, and as many lines of the log
TOLD = 1000
CAUSED = (
    "the coordinator gave up a round",
    "the coordinator says more than this owner can work off; left out",
    "the coordinator sent a statement that is not the aggregator's",
    "invitation refused",
    "declined",
    "could not decline",
)
METHODS = [
    f"/cairn.v1.ReleaseService/{name}" for name in ("RegisterJob", "OpenRound", "AbortRound")
]


@pytest.fixture
def own_network(tmp_path: Path) -> Iterator[Network]:
    """An aggregator whose refusals are those of one test."""
    network = Network(tmp_path, floor=3)
    yield network
    if network.node.process.poll() is None:
        network.stop()


def test_five_thousand_refused_calls_leave_a_few_entries_and_lines_and_are_all_counted(
    own_network: Network,
) -> None:
    made = Counter({uri: _refused_calls(own_network, who) for who, uri in CALLERS.items()})
    own_network.stop()
    entries = refusals(own_network.state)
    assert _counted(entries) == made
    written = Counter(_bare(entry.facts["caller"]) for entry in entries)
    assert max(written.values()) <= ENTRIES_OF_CALLER + 1  # and one that says how many more
    keys = [
        tuple(entry.facts.get(k) for k in ("caller", "method", "error", "reason"))
        for entry in entries
    ]
    assert len(keys) == len(set(keys)), "the same refusal was written twice"
    lines = own_network.node.events("refused")
    unlogged = own_network.node.events("lines were left out")
    assert max(Counter(line["caller"] for line in lines).values()) <= ENTRIES_OF_CALLER
    assert len(lines) + sum(line["count"] for line in unlogged) == made.total()
    assert own_network.node.log.stat().st_size < 64 << 10
    _check_commands(own_network, made.total())


def test_a_coordinator_that_talks_without_end_does_not_fill_an_owners_log(
    own_network: Network,
) -> None:
    """Ends of a round that never was, an invitation that nobody signed, and the same signed one over again."""
    stage = Stage(own_network)
    try:
        job = stage.job()
        declined = signed(stage, manifest(stage, job, floor=2))
        for number in range(TOLD):
            stage.tell(number.to_bytes(32), reason=pb.REASON_BELOW_FLOOR)
            stage.tell(number.to_bytes(32), statement=pb.Signed(body=number.to_bytes(9)))
            stage.invite(pb.Signed(body=number.to_bytes(9)), job.body)
            stage.invite(declined, job.body)
        ended = coordinator_pb2.Finished(job="ward")
        stage.coordinator.says["alice"].put(coordinator_pb2.AttendResponse(finished=ended))
        until(
            lambda: len(stage.coordinator.attended) > 1, "alice has heard it all, and attends anew"
        )
        stage.alice.send(signal.SIGTERM)
        assert stage.alice.ends() == 0
        said = {event: stage.alice.events(event) for event in CAUSED}
        assert max(map(len, said.values())) <= ENTRIES_OF_CALLER
        left_out = sum(line["count"] for line in stage.alice.events("lines were left out"))
        assert sum(map(len, said.values())) + left_out >= TOLD
        assert stage.alice.log.stat().st_size < 64 << 10
        assert len(stage.entries("declined")) == 1
    finally:
        stage.close()


def test_a_restart_keeps_what_was_counted(own_network: Network) -> None:
    first = _refused_calls(own_network, "mallory", 100)
    own_network.restart(kill=False)
    second = _refused_calls(own_network, "mallory", 100)
    own_network.stop()
    assert _counted(refusals(own_network.state)) == {"owner/mallory": first + second}


def _refused_calls(network: Network, who: str, calls: int = CALLS) -> int:
    """Make calls of which each must be refused, and say how many there were."""
    channel = network.channel(who, network.release_at)
    for number in range(calls):
        method: Any = channel.unary_unary(METHODS[number % len(METHODS)])
        with pytest.raises(grpc.RpcError) as caught:
            method(b"", timeout=SECONDS)
        error: Any = caught.value
        assert error.code() is not grpc.StatusCode.UNAVAILABLE, error.details()
    return calls


def _counted(entries: list[Entry]) -> Counter[str]:
    counted = Counter[str]()
    for entry in entries:
        assert entry.kind in {"refused", "not written"}
        counted[_bare(entry.facts["caller"])] += entry.facts.get("count", 1)
    return counted


def _bare(caller: str) -> str:
    return "/".join(caller.split("/")[-2:])


def _check_commands(network: Network, total: int) -> None:
    state = str(network.state)
    shown = run([BIN / "cairn", "ledger", "--refusals", state]).stdout
    lines = [json.loads(line) for line in shown.splitlines()]
    assert sum(line.get("count", 1) for line in lines) == total
    config = network.directory / "alice.toml"
    verified = run([BIN / "cairn", "verify", "--config", config, state])
    assert verified.returncode == 0, verified.stdout + verified.stderr
