"""A coordinator that tells nobody how a round ended, and an aggregator whose state from before is put back.

Alice is a real process. Her own questions bring her the head behind the release, and that head stops the
aggregator before the base can be averaged over others.
"""

import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hostile.checks import chain, database
from tests.hostile.stage import COHORT, Stage, fresh_base
from tests.scenarios.processes import until
from tests.service.network import Job, Network, OpenRound

WITHOUT_CAROL = ("alice", "bob", "dave")


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    """An aggregator of this test alone: its state is put back."""
    stage = Stage(Network(tmp_path, floor=3, lease_seconds=600))
    yield stage
    stage.close()
    if stage.network.node.process.poll() is None:
        stage.network.stop()


def opened_round(stage: Stage, job: Job, base: bytes) -> OpenRound:
    opened = job.open(COHORT, base)
    stage.coordinator.models[opened.manifest.base_digest] = base
    return opened


def alices_update_is_accepted(stage: Stage, opened: OpenRound) -> None:
    stage.invite(opened.signed, opened.job.body)
    digest = opened.digest.hex()

    def accepted() -> bool:
        return digest in [entry.facts["manifest_digest"] for entry in stage.entries("receipt")]

    until(accepted, "alice's update is accepted")


def others_push(opened: OpenRound) -> None:
    for owner in ("bob", "carol"):
        opened.join(owner)
        opened.push(owner, bytes(12))


def alice_knows_of_the_release(stage: Stage, opened: OpenRound) -> None:
    def known() -> bool:
        digests = [entry.facts["manifest_digest"] for entry in stage.entries("released")]
        return opened.digest.hex() in digests

    until(known, "alice has recorded the statement")


def put_back(stage: Stage, state: Path, job: Job) -> None:
    """Stop the aggregator, put this copy of its state in the place of the present one, and start it."""
    stage.network.node.send(signal.SIGTERM)
    assert stage.network.node.ends() == 0
    shutil.rmtree(stage.network.state)
    shutil.copytree(state, stage.network.state)
    stage.network.restart(kill=True)  # it has ended already
    job.coordinator = stage.network.release()


def test_a_state_from_before_a_release_is_found_out_although_the_coordinator_told_nobody_of_it(
    stage: Stage, tmp_path: Path
) -> None:
    job, base = stage.job(), fresh_base()
    opened = opened_round(stage, job, base)
    alices_update_is_accepted(stage, opened)
    shutil.copytree(stage.network.state, tmp_path / "before")  # nothing is written meanwhile
    others_push(opened)
    assert opened.ends().statement.contributors == 3
    alice_knows_of_the_release(stage, opened)

    put_back(stage, tmp_path / "before", job)
    again = job.open(
        WITHOUT_CAROL, base, number=2
    )  # to subtract it from the first gives carol's update
    stage.invite(again.signed, job.body)
    assert stage.network.node.ends() == 1
    assert "the ledger is behind a head that this aggregator signed" in stage.network.node.output()
    with database(stage.network.state / "aggregator.sqlite") as db:
        kinds = [entry.kind for entry in chain(db, "ledger")]
    assert kinds == ["job", "open", "abort", "open", "abort"]  # of neither round is there a release
    assert again.digest.hex() not in [e.facts["manifest_digest"] for e in stage.entries("sent")]


def test_an_owner_that_was_started_anew_asks_although_no_coordinator_is_there(stage: Stage) -> None:
    opened = opened_round(stage, stage.job(), fresh_base())
    alices_update_is_accepted(stage, opened)
    stage.alice.kill()
    others_push(opened)
    assert opened.ends().statement.contributors == 3
    stage.coordinator.stop()
    stage.alice = stage.start_alice(until="owner is ready")
    alice_knows_of_the_release(stage, opened)
    stage.coordinator.start(stage.network)  # for the stage, which ends it
