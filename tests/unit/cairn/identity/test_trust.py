"""Whom a node believes: the certificates of a file that it pins, or those of its own authority."""

import hashlib
import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest

from cairn.errors import UsageError
from cairn.identity.authority import Authority, Subject, issue, new_authority, new_key, new_request
from cairn.identity.credentials import load_identity
from cairn.identity.names import NodeName, Role
from cairn.identity.pem import write_new
from cairn.identity.trust import PeerTrust, is_believed, load_pinned, of_own_authority

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
ALICE = NodeName("hospitals", Role.OWNER, "alice")
AGGREGATOR = NodeName("hospitals", Role.AGGREGATOR, "aggregator")
COORDINATOR = NodeName("hospitals", Role.COORDINATOR, "coordinator")


@pytest.fixture(scope="module")
def authority() -> Authority:
    return new_authority("hospitals", NOW)


def certificate_of(authority: Authority, node: NodeName, key: bytes, days: int = 365) -> bytes:
    subject = Subject(node)
    return issue(authority, new_request(subject, key), subject, NOW, days)


@pytest.mark.parametrize(
    ("peer", "believed"),
    [
        (NodeName("hospitals", Role.AGGREGATOR, "aggregator"), True),
        (NodeName("hospitals", Role.AGGREGATOR, "another-name"), True),
        (NodeName("hospitals", Role.COORDINATOR, "aggregator"), False),
        (NodeName("hospitals", Role.OWNER, "aggregator"), False),
        (NodeName("banks", Role.AGGREGATOR, "aggregator"), False),
    ],
    ids=str,
)
@pytest.mark.parametrize("is_pinned", [True, False])
def test_a_peer_is_believed_whose_role_and_federation_are_those_that_are_meant(
    *, peer: NodeName, believed: bool, is_pinned: bool
) -> None:
    trust = PeerTrust(Role.AGGREGATOR, "hospitals", b"", Path("a.crt"), is_pinned)
    assert is_believed(trust, peer) is believed


def test_a_pin_says_the_fingerprints_and_the_last_end_of_its_certificates(
    tmp_path: Path, authority: Authority
) -> None:
    pems = [certificate_of(authority, AGGREGATOR, new_key(), days) for days in (7, 3)]
    (tmp_path / "a.crt").write_bytes(b"".join(pems))
    pinned = load_pinned(tmp_path / "a.crt", Role.AGGREGATOR, "hospitals", NOW)
    ders = [ssl.PEM_cert_to_DER_cert(pem.decode()) for pem in pems]
    expected = ", ".join(f"sha256:{hashlib.sha256(der).hexdigest()}" for der in ders)
    assert pinned.fingerprints == expected
    assert pinned.end == NOW + timedelta(days=7)
    assert pinned.is_pinned


def test_without_a_pin_the_own_authority_is_what_a_peer_is_believed_for(
    tmp_path: Path, authority: Authority
) -> None:
    key = new_key()
    for name, pem in {
        "node.crt": certificate_of(authority, ALICE, key),
        "node.key": key,
        "authority.crt": authority.certificate,
    }.items():
        write_new(tmp_path / name, pem, 0o600)
    paths = (tmp_path / "node.crt", tmp_path / "node.key", tmp_path / "authority.crt")
    files = SimpleNamespace(certificate=paths[0], key=paths[1], authority=paths[2])
    trust = of_own_authority(load_identity(files, ALICE, NOW), Role.COORDINATOR)
    assert (trust.certificates, trust.file) == (authority.certificate, paths[2])
    assert not trust.is_pinned
    assert [is_believed(trust, node) for node in (COORDINATOR, AGGREGATOR)] == [True, False]


def test_the_pinned_certificate_is_loaded(tmp_path: Path, authority: Authority) -> None:
    pem = certificate_of(authority, AGGREGATOR, new_key())
    (tmp_path / "aggregator.crt").write_bytes(pem)
    assert (
        load_pinned(tmp_path / "aggregator.crt", Role.AGGREGATOR, "hospitals", NOW).certificates
        == pem
    )


@pytest.mark.parametrize("node", [COORDINATOR, ALICE], ids=str)
def test_no_other_role_can_be_pinned_as_the_aggregator(
    tmp_path: Path, authority: Authority, node: NodeName
) -> None:
    (tmp_path / "a.crt").write_bytes(certificate_of(authority, node, new_key()))
    with pytest.raises(UsageError, match=f"is the certificate of {node}, but it should be"):
        load_pinned(tmp_path / "a.crt", Role.AGGREGATOR, "hospitals", NOW)


def test_the_aggregator_of_another_federation_cannot_be_pinned(
    tmp_path: Path, authority: Authority
) -> None:
    (tmp_path / "a.crt").write_bytes(certificate_of(authority, AGGREGATOR, new_key()))
    with pytest.raises(UsageError, match="the aggregator of federation banks"):
        load_pinned(tmp_path / "a.crt", Role.AGGREGATOR, "banks", NOW)


def test_an_expired_pinned_certificate_is_refused(tmp_path: Path, authority: Authority) -> None:
    (tmp_path / "a.crt").write_bytes(certificate_of(authority, AGGREGATOR, new_key()))
    with pytest.raises(UsageError, match="expired on"):
        load_pinned(tmp_path / "a.crt", Role.AGGREGATOR, "hospitals", NOW + timedelta(days=366))


def test_while_the_aggregator_changes_its_certificate_both_can_be_pinned(
    tmp_path: Path, authority: Authority
) -> None:
    old, new = (certificate_of(authority, AGGREGATOR, new_key()) for _ in range(2))
    (tmp_path / "a.crt").write_bytes(b"the old one\n" + old + b"the new one\n" + new)
    pinned = load_pinned(tmp_path / "a.crt", Role.AGGREGATOR, "hospitals", NOW)
    assert pinned.certificates == old + new


def test_of_several_pinned_certificates_each_must_be_the_aggregators(
    tmp_path: Path, authority: Authority
) -> None:
    pems = [certificate_of(authority, node, new_key()) for node in (AGGREGATOR, COORDINATOR)]
    (tmp_path / "a.crt").write_bytes(b"".join(pems))
    with pytest.raises(UsageError, match=f"is the certificate of {COORDINATOR}, but it should be"):
        load_pinned(tmp_path / "a.crt", Role.AGGREGATOR, "hospitals", NOW)


def test_of_several_pinned_certificates_those_that_have_expired_are_not_trusted(
    tmp_path: Path, authority: Authority
) -> None:
    old = certificate_of(authority, AGGREGATOR, new_key(), days=1)
    new = certificate_of(authority, AGGREGATOR, new_key(), days=3)
    (tmp_path / "a.crt").write_bytes(old + new)
    later = NOW + timedelta(days=2)
    assert load_pinned(tmp_path / "a.crt", Role.AGGREGATOR, "hospitals", later).certificates == new
    with pytest.raises(UsageError, match="expired on 2026-03-04"):
        load_pinned(tmp_path / "a.crt", Role.AGGREGATOR, "hospitals", NOW + timedelta(days=4))


def test_a_pinned_file_without_a_certificate_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.crt").write_text("")
    with pytest.raises(UsageError, match=r"a.crt holds no certificate in PEM"):
        load_pinned(tmp_path / "a.crt", Role.AGGREGATOR, "hospitals", NOW)
