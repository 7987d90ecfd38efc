"""A key that was stolen: its certificate is valid, names a node of the roster, and is on the list of revoked ones."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from cairn.identity.authority import Authority, Subject, issue, new_key, new_request
from cairn.identity.names import NodeName, Role
from cairn.v1 import aggregator_pb2
from tests.hostile.attacks import COHORT, DENIED, register
from tests.hostile.checks import ONE_HOT, one_hot, refuses
from tests.scenarios.processes import until
from tests.service.network import FEDERATION, SECONDS, Network, refused


@pytest.fixture
def ward(tmp_path: Path) -> Iterator[Network]:
    network = Network(tmp_path, floor=3, lease_seconds=600)
    yield network
    network.stop()


def fingerprints(certificate: bytes) -> tuple[str, str]:
    """Of the certificate and of its public key, by hashlib."""
    read = x509.load_pem_x509_certificate(certificate)
    key = read.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    of_certificate, of_key = (
        f"sha256:{sha256(der).hexdigest()}" for der in (read.public_bytes(Encoding.DER), key)
    )
    return of_certificate, of_key


def revoke(network: Network, *revoked: str) -> None:
    """Write the list into the aggregator's file, in one step."""
    file = network.directory / "aggregator.toml"
    kept = [line for line in file.read_text().splitlines() if not line.startswith("revoked")]
    new = file.with_suffix(".new")
    new.write_text("\n".join([f"revoked = {json.dumps(revoked)}", *kept]) + "\n")
    new.replace(file)


def certify_again(network: Network, role: Role, name: str) -> str:
    """Give the node of this name a second certificate, for another key; returns who it is in the network."""
    home = network.directory / "authority/authority.key"
    authority = Authority(network.root, home.read_bytes())
    subject, key = Subject(NodeName(FEDERATION, role, name)), new_key()
    certificate = issue(authority, new_request(subject, key), subject, datetime.now(UTC))
    network.credentials[f"new {name}"] = key, certificate
    return f"new {name}"


@pytest.mark.parametrize("which", [0, 1], ids=["certificate", "public key"])
def test_a_revoked_certificate_of_an_owner_is_refused_and_another_of_its_name_is_not(
    ward: Network, which: int
) -> None:
    opened = ward.job(schema=ONE_HOT, floor=3).open(COHORT)
    for owner in COHORT:
        opened.join(owner)
    renewed = certify_again(ward, Role.OWNER, "alice")
    revoke(ward, fingerprints(ward.credentials["alice"][1])[which])
    with refuses(ward, "owner/alice", "JoinRound", DENIED, "NOT_ALLOWED"):
        opened.join("alice")  # on the connection that it has
    with refuses(ward, "owner/alice", "SubmitUpdate", DENIED, "NOT_ALLOWED"):
        opened.push("alice", one_hot("alice"))
    request = aggregator_pb2.ListEntriesRequest(first=1, limit=1)
    with refuses(ward, "owner/alice", "ListEntries", DENIED, "NOT_ALLOWED"):
        ward.record("alice").ListEntries(request, timeout=SECONDS)
    opened.join(renewed)
    for owner in (renewed, *COHORT[1:]):
        opened.push(owner, one_hot(owner.removeprefix("new ")))
    assert opened.ends().statement.contributors == 3


def test_a_revoked_certificate_of_a_coordinator_is_refused_and_another_of_its_name_is_not(
    ward: Network,
) -> None:
    job = ward.job(schema=ONE_HOT, floor=3)
    renewed = certify_again(ward, Role.COORDINATOR, "coordinator")
    revoke(ward, fingerprints(ward.credentials["coordinator"][1])[0])
    with refuses(ward, "coordinator/coordinator", "RegisterJob", DENIED, "NOT_ALLOWED"):
        register(ward, "coordinator", job.body)
    with refuses(ward, "coordinator/coordinator", "OpenRound", DENIED, "NOT_ALLOWED"):
        job.open(COHORT)
    register(ward, renewed, job.body)
    job.coordinator = ward.release(renewed)
    assert job.open(COHORT).manifest.cohort == COHORT
    ward.restart(kill=True)
    with refused(DENIED, "was revoked", "NOT_ALLOWED"):
        register(ward, "coordinator", job.body)


def test_a_certificate_that_is_revoked_while_its_holder_pushes_is_not_counted(
    ward: Network,
) -> None:
    opened = ward.job(schema=ONE_HOT, floor=3).open(COHORT)
    opened.join("alice")

    def parts() -> Iterator[aggregator_pb2.SubmitUpdateRequest]:
        header, *rest = opened.parts(np.ones(5, "<f4").tobytes())
        yield header
        turn.wait_for_turn()
        revoke(ward, fingerprints(ward.credentials["alice"][1])[0])
        yield from rest

    turn = _Turn()
    push = ward.intake("alice").SubmitUpdate.future(parts(), timeout=SECONDS)
    turn.call = push
    with refused(DENIED, "was revoked", "NOT_ALLOWED"):
        push.result()
    with refused(DENIED, "was revoked", "NOT_ALLOWED"):
        opened.receipt("alice")


class _Turn:
    """Waits until the aggregator has taken the header of a push."""

    call: Any

    def wait_for_turn(self) -> None:
        until(lambda: hasattr(self, "call"), "the call is made")
        list(self.call.initial_metadata())


def test_a_fingerprint_that_is_none_is_a_mistake_that_leaves_the_list_as_it_was(
    ward: Network,
) -> None:
    opened = ward.job(schema=ONE_HOT, floor=3).open(COHORT)
    revoke(ward, fingerprints(ward.credentials["alice"][1])[0])
    with refused(DENIED, "was revoked"):
        opened.join("alice")
    revoke(ward, "sha256:abc")
    with refused(DENIED, "was revoked"):
        opened.join("alice")
    opened.join("bob")
    (logged,) = ward.node.events("the changed file cannot be used, the roster stays")
    assert "revoked" in logged["reason"]
    assert "cairn identity" in logged["reason"]
