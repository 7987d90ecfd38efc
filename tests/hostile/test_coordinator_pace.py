"""A coordinator that serves its model so slowly that it never falls silent and never comes to an end."""

import numpy as np

from tests.hostile.stage import LARGE, Stage
from tests.scenarios.processes import until
from tests.service.network import SECONDS

OTHERS = ("bob", "carol", "dave")
DEADLINE = 3


def test_a_fetch_that_trickles_is_ended_with_the_round(stage: Stage) -> None:
    job = stage.job(schema=LARGE, task="large", deadline=DEADLINE)
    base = np.full(LARGE.tensors[0].shape, 0.25, "<f4").tobytes()  # days, byte by byte
    opened = job.open(("alice", *OTHERS), base)
    digest = opened.manifest.base_digest
    stage.coordinator.models[digest] = base
    stage.coordinator.trickling.add(digest)
    stage.invite(opened.signed, job.body)
    for owner in OTHERS:
        opened.join(owner)
        opened.push(owner, base)
    until(lambda: ("alice", digest) in stage.coordinator.fetched, "alice fetches")
    ended = opened.ends()
    assert (ended.exclusions, ended.payload) == ({"alice": "DEADLINE"}, base)

    def given_up() -> bool:
        facts = [entry.facts for entry in stage.entries("declined")]
        mine = [f for f in facts if f["manifest_digest"] == opened.digest.hex()]
        return [f["reason"] for f in mine] == ["FETCH_FAILED"]

    until(given_up, "alice gives up", SECONDS)
