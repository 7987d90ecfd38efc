"""An owner that is taken off the aggregator's roster is refused at its next call, without a restart."""

from collections.abc import Iterator
from pathlib import Path
from threading import Event

import grpc
import numpy as np
import pytest

from cairn.model.schema import Schema, TensorSpec
from cairn.v1 import aggregator_pb2
from tests.chaos.puppet import LEASE_SECONDS, Puppet
from tests.scenarios.processes import until
from tests.service.network import OWNERS, SECONDS, Network, refused

DENIED, INVALID = grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.INVALID_ARGUMENT
COHORT = ("alice", "bob", "carol")
SMALLEST_CHUNK = 64 << 10
MODEL = Schema.of([TensorSpec("w", "F32", (3 * SMALLEST_CHUNK // 4,))])  # three chunks
ONES = np.ones(3 * SMALLEST_CHUNK // 4, np.float32).tobytes()


@pytest.fixture
def network(tmp_path: Path) -> Iterator[Puppet]:
    network = Puppet(tmp_path)
    yield network
    network.stop()


def list_owners(network: Network, *owners: str) -> None:
    """Write the aggregator's file anew, in one step."""
    file = network.directory / "aggregator.toml"
    lines = file.read_text().splitlines()
    names = ", ".join(f'"{owner}"' for owner in owners)
    changed = [f"owners = [{names}]" if line.startswith("owners") else line for line in lines]
    assert changed != lines
    new = file.with_suffix(".new")
    new.write_text("\n".join(changed) + "\n")
    new.replace(file)


def test_an_owner_that_was_removed_is_refused_at_its_next_call_whichever_it_is(
    network: Puppet,
) -> None:
    opened = network.job(schema=MODEL).open(COHORT)
    for owner in COHORT:
        opened.join(owner)
    list_owners(network, "alice", "carol", "dave", "erin")
    request = aggregator_pb2.ListEntriesRequest(first=1, limit=1)
    for call in (
        lambda: opened.join("bob"),
        lambda: opened.push("bob", ONES),
        lambda: opened.receipt("bob"),
        lambda: network.record("bob").ListEntries(request, timeout=SECONDS),
    ):
        with refused(DENIED, "is not on the roster", "UNKNOWN_OWNER"):
            call()
    opened.push("alice", ONES)
    opened.push("carol", ONES)
    network.advance(LEASE_SECONDS)
    ended = opened.ends()
    assert (ended.statement.contributors, ended.exclusions) == (2, {"bob": "LEASE_EXPIRED"})


def test_an_owner_that_is_removed_while_it_pushes_is_not_counted(network: Puppet) -> None:
    opened = network.job(schema=MODEL).open(COHORT)
    for owner in COHORT:
        opened.join(owner)
    half, goes_on = Event(), Event()

    def slow() -> Iterator[aggregator_pb2.SubmitUpdateRequest]:
        header, whole, last = opened.parts(ONES)
        yield header
        yield aggregator_pb2.SubmitUpdateRequest(chunk=whole.chunk[:SMALLEST_CHUNK])
        half.set()
        goes_on.wait(SECONDS)
        yield aggregator_pb2.SubmitUpdateRequest(chunk=whole.chunk[SMALLEST_CHUNK:])
        yield last

    push = network.intake("bob").SubmitUpdate.future(slow(), timeout=SECONDS)
    assert half.wait(SECONDS)
    list_owners(network, "alice", "carol", "dave", "erin")
    goes_on.set()
    with refused(DENIED, "is not on the roster", "UNKNOWN_OWNER"):
        push.result()
    opened.push("alice", ONES)
    opened.push("carol", ONES)
    network.advance(LEASE_SECONDS)
    ended = opened.ends()
    assert ended.statement.contributors == 2
    assert list(ended.exclusions) == ["bob"]


def test_an_owner_that_was_removed_is_in_no_new_cohort_and_in_no_new_job(network: Network) -> None:
    job = network.job()
    list_owners(network, "alice", "carol", "dave", "erin")
    with refused(INVALID, "bob cannot be in a cohort", "UNKNOWN_OWNER"):
        job.open(COHORT)
    with refused(INVALID, "the aggregator does not know bob", "UNKNOWN_OWNER"):
        network.job()
    assert job.open(("alice", "carol")).manifest.cohort == ("alice", "carol")


def test_an_owner_that_is_added_again_takes_part_again(network: Network) -> None:
    opened = network.job().open(COHORT)
    list_owners(network, "alice", "carol", "dave", "erin")
    with refused(DENIED, reason="UNKNOWN_OWNER"):
        opened.join("bob")
    list_owners(network, *OWNERS)
    assert opened.join("bob").lease_seconds == LEASE_SECONDS


def test_a_file_that_cannot_be_read_leaves_the_roster_as_it_was(network: Network) -> None:
    opened = network.job().open(COHORT)
    file = network.directory / "aggregator.toml"
    good = file.read_text()
    file.write_text("owners = [")
    opened.join("alice")
    with refused(DENIED, "is not on the roster", "UNKNOWN_OWNER"):
        opened.join("mallory")
    until(
        lambda: network.node.events("the changed file cannot be used, the roster stays"), "logged"
    )
    file.write_text(good)
    list_owners(network, "alice", "carol", "dave", "erin")
    with refused(DENIED, "is not on the roster", "UNKNOWN_OWNER"):
        opened.join("bob")


def test_a_job_goes_on_without_an_owner_that_was_removed(network: Network) -> None:
    """A coordinator that was restarted registers its job again; the cohort is what is checked."""
    job = network.job(schema=MODEL, owners=(*COHORT, "dave"))
    list_owners(network, *COHORT)
    assert job.register().last_round == 0
    with refused(INVALID, "dave", "UNKNOWN_OWNER"):
        job.open(("alice", "bob", "dave"))
    assert job.run(dict.fromkeys(COHORT, ONES)).payload == ONES
