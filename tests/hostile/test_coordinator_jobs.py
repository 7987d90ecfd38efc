"""A coordinator that registers jobs without end: what that leaves on the aggregator's disk is bounded."""

from collections.abc import Iterator

import pytest

from tests.hostile.checks import bounded
from tests.hostile.owners import EXHAUSTED
from tests.service.network import Network, refused

AGAIN = 300
LINES = 10  # of one job in an hour
JOBS = 1024  # of one coordinator, without a release


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Network]:
    network = Network(tmp_path_factory.mktemp("jobs"), floor=3)
    yield network
    network.stop()


def test_one_job_registered_again_and_again_fills_no_log(network: Network) -> None:
    job = network.job(floor=3)
    for _ in range(AGAIN):
        job.register()
    lines = [line for line in network.node.events("job registered") if line["job"] == job.spec.name]
    assert 0 < len(lines) <= LINES


def test_the_jobs_of_one_coordinator_without_a_release_come_to_an_end(network: Network) -> None:
    """However small they are: each has an entry in the ledger, and may have rounds that are aborted."""
    with bounded(network.node.pid):
        registered = 0
        with refused(EXHAUSTED, "too many jobs of this coordinator have no release yet"):
            for _ in range(JOBS + 1):
                network.job(coordinator="rival", floor=3)
                registered += 1
    assert registered == JOBS
    network.job(floor=3)  # another coordinator's are its own
