"""A private job at a real aggregator: its budget is spent once for each release, through deaths, restarts and repetition."""

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import grpc
import numpy as np
import pytest
from click.testing import CliRunner

from cairn.cli.verify import verify
from cairn.protocol.aggregation import Aggregation
from cairn.v1 import aggregator_pb2
from cairn.v1 import round_pb2 as pb
from tests.service.network import FEDERATION, Ended, Job, Network, OpenRound, refused

COHORT = ("alice", "bob", "carol")
BASE = np.array([1, 2, 3, 4], "<f4").tobytes()
UPDATES = {o: np.full(4, number, "<f4").tobytes() for number, o in enumerate(COHORT)}
# What one, two, three releases of noise 2 tell of an owner at delta 1e-5: by Proposition 12 of Canonne, Kamath, Steinke 2020
# and SciPy's search; dp-accounting 0.6.0 and Opacus 1.6.0 say 2.1657 of the first.
TOLD = [2.165715545175, 3.188971158883, 4.011310056658]


def private(**numbers: float) -> Aggregation:
    """With a budget for three releases, if nothing else is said."""
    chosen = {"norm": 1.0, "noise": 2.0, "epsilon": 4.5, "delta": 1e-5, **numbers}
    return Aggregation(rule=pb.RULE_PRIVATE_MEAN, rule_numbers=chosen)


@dataclass
class PrivateJob:
    """Goes through the rounds of a job, each from the release of the one before."""

    job: Job
    base: bytes = BASE
    number: int = 0

    @classmethod
    def at(cls, network: Network, **numbers: float) -> "PrivateJob":
        job = network.job(owners=COHORT, aggregation=private(**numbers))
        job.bring(BASE)
        return cls(job)

    def open(self) -> OpenRound:
        self.number += 1
        return self.job.open(COHORT, self.base, self.number)

    def run(self) -> Ended:
        ended = self.ended(_pushed(self.open()))
        assert ended.statement.HasField("privacy"), ended.reason
        return ended

    def ended(self, opened: OpenRound) -> Ended:
        ended = opened.ends()
        self.base = ended.payload or self.base
        return ended

    def told(self) -> float:
        return self.run().statement.privacy.epsilon


def _pushed(opened: OpenRound) -> OpenRound:
    for owner, update in UPDATES.items():
        opened.join(owner)
        with suppress(grpc.RpcError):  # the last update seals the round: its answer may be lost
            opened.push(owner, update)
    return opened


def refuses_the_next(job: PrivateJob) -> None:
    with refused(grpc.StatusCode.FAILED_PRECONDITION, "the budget", "BUDGET_SPENT"):
        job.open()
    job.number -= 1


def verified_ledger(network: Network) -> str:
    result = CliRunner().invoke(verify, [str(network.state)])
    assert result.exit_code == 0, result.output
    return result.output


def test_a_budget_is_spent_release_by_release_and_every_collection_has_the_same_bytes(
    tmp_path: Path,
) -> None:
    network = Network(tmp_path, max_epsilon=4.5)
    job = PrivateJob.at(network)
    opened = _pushed(job.open())
    privacy = job.ended(opened).statement.privacy
    assert privacy.epsilon == pytest.approx(TOLD[0])
    assert privacy.delta == 1e-5
    first = opened.collect()
    assert opened.collect() == first
    assert job.told() == pytest.approx(TOLD[1])
    last = _pushed(job.open())
    assert job.ended(last).statement.privacy.epsilon == pytest.approx(TOLD[2])
    refuses_the_next(job)
    once = last.collect()

    network.restart(kill=True)
    job.job.coordinator = network.release()
    job.job.register()
    assert last.collect() == once
    refuses_the_next(job)

    invalid = grpc.StatusCode.INVALID_ARGUMENT
    with refused(invalid, "epsilon 2.166 of one owner", "BUDGET_SPENT"):
        PrivateJob.at(network, epsilon=2.1)
    with refused(invalid, "allows 4.5 (max_epsilon)", "RULE_REFUSED"):
        PrivateJob.at(network, epsilon=4.6)
    network.stop()
    assert "epsilon 4.011 of 4.5 (delta 1e-05) after 3 releases" in verified_ledger(network)


@pytest.mark.parametrize(
    ("point", "is_released"),
    [
        ("aggregator.seal.before_release", False),
        ("aggregator.release.file_written", False),
        ("aggregator.release.before_commit", False),
        ("aggregator.release.after_commit", True),
    ],
)
def test_after_a_death_in_a_release_as_much_is_spent_as_was_released(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, point: str, *, is_released: bool
) -> None:
    monkeypatch.setenv("CAIRN_FAILPOINTS", f"{point}=kill@2")
    monkeypatch.setenv("CAIRN_FAILPOINTS_IN", FEDERATION)
    network = Network(tmp_path, lease_seconds=600)
    job = PrivateJob.at(network)
    assert job.told() == pytest.approx(TOLD[0])
    opened = _pushed(job.open())
    network.node.ends()
    monkeypatch.delenv("CAIRN_FAILPOINTS")
    network.restart(kill=True)
    job.job.coordinator = network.release()
    job.job.register()
    ended = job.ended(opened)
    if is_released:
        assert ended.statement.privacy.epsilon == pytest.approx(TOLD[1])
        assert opened.collect() == opened.collect()
    else:
        assert ended.state == aggregator_pb2.ROUND_STATE_ABORTED
        assert job.told() == pytest.approx(TOLD[1])
    assert job.told() == pytest.approx(TOLD[2])
    refuses_the_next(job)
    network.stop()
    assert "epsilon 4.011 of 4.5 (delta 1e-05) after 3 releases" in verified_ledger(network)
