"""Jobs whose owners take turns in fixed groups, at a real aggregator."""

import json
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from cairn.protocol.cohorts import Groups
from cairn.v1 import aggregator_pb2
from tests.service.network import SECONDS, Ended, Job, Network, refused
from tests.service.test_differences import SCHEMA, finish

RELEASED = aggregator_pb2.ROUND_STATE_RELEASED
ABORTED = aggregator_pb2.ROUND_STATE_ABORTED
PRECONDITION = grpc.StatusCode.FAILED_PRECONDITION
PAIR, THREE = GROUPS = (("alice", "carol"), ("bob", "dave", "erin"))


@pytest.fixture
def same_model(tmp_path: Path) -> Iterator[Network]:
    """An aggregator that compares all releases of models with the same tensors."""
    network = Network(tmp_path, compare_releases="same_model")
    yield network
    network.stop()


def rounds_of(job: Job, *cohorts: tuple[str, ...], dropped: str = "") -> list[Ended]:
    """Rounds of these cohorts, each from the release before; in the last, one may drop out."""
    ends: list[Ended] = []
    for number, cohort in enumerate(cohorts, 1):
        opened = job.open(cohort, ends[-1].payload if ends else None, number=number)
        ends.append(finish(opened, *([dropped] if dropped and number == len(cohorts) else [])))
    return ends


def divided(network: Network, groups: Groups = GROUPS) -> Job:
    return network.job(schema=SCHEMA, groups=groups)


def test_groups_take_turns_where_all_releases_of_a_model_are_compared(same_model: Network) -> None:
    first = rounds_of(divided(same_model), PAIR, THREE, THREE, PAIR)
    assert [ended.state for ended in first] == [RELEASED] * 4
    assert [ended.statement.contributors for ended in first] == [2, 3, 3, 2]
    *_, last = rounds_of(divided(same_model), THREE, PAIR, THREE, dropped="erin")
    assert (last.state, last.reason) == (ABORTED, "COHORT_DIFFERENCE")
    with refused(PRECONDITION, reason="COHORT_DIFFERENCE"):
        divided(same_model).open(THREE[1:])
    otherwise = divided(same_model, (("alice", "bob"), ("carol", "dave", "erin")))
    for group in otherwise.spec.groups:
        with refused(PRECONDITION, reason="COHORT_DIFFERENCE"):
            otherwise.open(group)


def test_a_group_goes_on_without_an_owner_that_drops_out(own_network: Network) -> None:
    *_, last = rounds_of(divided(own_network), PAIR, THREE, dropped="erin")
    assert (last.state, last.statement.contributors) == (RELEASED, 2)
    assert list(last.exclusions) == ["erin"]


def test_the_groups_of_a_job_are_in_the_ledger_for_everybody(network: Network) -> None:
    plain, job = network.job(), divided(network)
    request = aggregator_pb2.ListEntriesRequest(first=1, limit=1000)
    entries = network.record("alice").ListEntries(request, timeout=SECONDS).entries
    bodies = [json.loads(entry.body) for entry in entries if entry.kind == "job"]
    facts = {body["job"]: body for body in bodies}
    assert facts[job.spec.name]["groups"] == [list(group) for group in GROUPS]
    assert "groups" not in facts[plain.spec.name]
