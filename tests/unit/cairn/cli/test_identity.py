"""The commands that make and show identities, as a person types them."""

import hashlib
import shutil
import ssl
import stat
import subprocess
import tomllib
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from cairn.cli.identity import identity, init, request, sign

GROUP = click.Group(commands=[init, request, sign, identity])
OPENSSL = shutil.which("openssl")


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(GROUP, [str(argument) for argument in arguments])


def refused(*arguments: str | Path) -> str:
    """Run what must be refused; return its one sentence."""
    result = run(*arguments)
    assert result.exit_code == 2
    assert not result.stdout
    assert result.stderr.startswith("Error: ")
    assert "Traceback" not in result.stderr
    return result.stderr


@pytest.fixture
def federation(tmp_path: Path) -> Path:
    directory = tmp_path / "tutorial"
    assert run("init", directory, "--owner", "bob", "--owner", "alice").exit_code == 0
    return directory


@pytest.fixture
def carol(tmp_path: Path) -> Path:
    """The directory of a node that has asked to be certified."""
    directory = tmp_path / "carol"
    carol = ("--federation", "tutorial", "--role", "owner", "--name", "carol")
    assert run("request", directory, *carol).exit_code == 0
    return directory


def signing(federation: Path, file: Path, out: Path, name: str = "carol") -> list[str | Path]:
    home = federation / "authority"
    return ["sign", file, "--authority", home, "--role", "owner", "--name", name, "--out", out]


def public_key_in(text: str) -> str:
    (line,) = [line for line in text.splitlines() if "public key  " in line]
    return line.split()[-1]


def test_init_takes_the_directorys_name_and_says_what_to_run_next(tmp_path: Path) -> None:
    directory = tmp_path / "tutorial"
    result = run("init", directory, "--owner", "bob", "--owner", "alice")
    assert result.exit_code == 0
    assert "Made the federation tutorial with a floor of 2" in result.stdout
    for command in (
        f"aggregator-node --config {directory}/aggregator.toml",
        f"owner-node --config {directory}/alice.toml",
        f"owner-node --config {directory}/bob.toml",
        f"coordinator run JOB.toml --config {directory}/coordinator.toml",
    ):
        assert command in result.stdout


def test_init_prints_each_nodes_fingerprint(federation: Path) -> None:
    result = run("init", federation.parent / "other", "--owner", "bob", "--owner", "alice")
    for name in ("aggregator", "coordinator", "alice", "bob"):
        pem = (federation.parent / "other" / name / "node.crt").read_text()
        digest = hashlib.sha256(ssl.PEM_cert_to_DER_cert(pem)).hexdigest()
        assert f"{name:<14}sha256:{digest}" in result.stdout


def test_init_in_a_directory_without_a_usable_name_makes_a_federation_of_that_name(
    tmp_path: Path,
) -> None:
    directory = tmp_path / "My Federation"
    assert run("init", directory, "--owner", "bob", "--owner", "alice").exit_code == 0
    made = tomllib.loads((directory / "bob.toml").read_text())
    assert made["federation"] == "federation"


def test_init_writes_what_it_was_told(tmp_path: Path) -> None:
    (tmp_path / "tasks.toml").write_text('[tasks.t]\nfile = "t.py"\ndata = "{owner}"\n')
    result = run(
        "init",
        tmp_path / "f",
        "--owner",
        "a",
        "--owner",
        "b",
        "--owner",
        "c",
        "--floor",
        "2",
        "--federation",
        "hospitals",
        "--coordinator",
        "model.example:1",
        "--aggregator",
        "agg.example:2",
        "--tasks",
        tmp_path / "tasks.toml",
    )
    assert result.exit_code == 0
    owner = tomllib.loads((tmp_path / "f" / "a.toml").read_text())
    assert (owner["federation"], owner["floor"]) == ("hospitals", 2)
    assert (owner["coordinator"], owner["aggregator"]) == ("model.example:1", "agg.example:2")
    assert owner["tasks"]["t"]["data"] == str(tmp_path / "a")
    coordinator = tomllib.loads((tmp_path / "f" / "coordinator.toml").read_text())
    assert coordinator["aggregator"] == "agg.example:7444"


def test_init_takes_another_address_for_the_coordinators_side(tmp_path: Path) -> None:
    result = run(
        "init",
        tmp_path / "f",
        "--owner",
        "a",
        "--owner",
        "b",
        "--aggregator-release",
        "inside.example:9",
    )
    assert result.exit_code == 0
    coordinator = tomllib.loads((tmp_path / "f" / "coordinator.toml").read_text())
    assert coordinator["aggregator"] == "inside.example:9"


def test_init_overwrites_nothing(federation: Path) -> None:
    before = (federation / "bob" / "node.key").read_bytes()
    said = refused("init", federation, "--owner", "bob", "--owner", "alice")
    assert "already holds" in said
    assert (federation / "bob" / "node.key").read_bytes() == before


def test_init_with_one_owner_is_refused(tmp_path: Path) -> None:
    said = refused("init", tmp_path / "f", "--owner", "bob")
    assert "a cohort of one is always refused" in said
    assert not (tmp_path / "f").exists()


def test_a_request_leaves_a_key_that_only_its_account_can_read(carol: Path) -> None:
    assert {path.name for path in carol.iterdir()} == {"node.key", "node.csr"}
    assert stat.S_IMODE((carol / "node.key").stat().st_mode) == 0o600
    assert stat.S_IMODE(carol.stat().st_mode) == 0o700


@pytest.mark.parametrize("existing", ["node.key", "node.csr"])
def test_a_request_overwrites_neither_of_its_files(tmp_path: Path, existing: str) -> None:
    (tmp_path / existing).write_text("mine")
    options = ("--federation", "tutorial", "--role", "owner", "--name", "carol")
    assert f"{existing} exists already" in refused("request", tmp_path, *options)
    assert {path.name for path in tmp_path.iterdir()} == {existing}
    assert (tmp_path / existing).read_text() == "mine"


def test_a_request_for_what_cannot_be_a_name_is_refused(tmp_path: Path) -> None:
    options = ("--federation", "tutorial", "--role", "owner", "--name", "Carol")
    assert "'Carol' cannot be a name" in refused("request", tmp_path / "carol", *options)
    assert not (tmp_path / "carol").exists()


def test_the_request_and_the_signature_print_one_fingerprint(
    federation: Path, tmp_path: Path
) -> None:
    options = ("--federation", "tutorial", "--role", "owner", "--name", "carol")
    asked = run("request", tmp_path / "carol", *options)
    signed = run(*signing(federation, tmp_path / "carol/node.csr", tmp_path / "carol.crt"))
    assert signed.exit_code == 0
    assert "Issued" in signed.stdout
    assert "owner/carol in federation tutorial" in signed.stdout
    assert public_key_in(asked.stdout) == public_key_in(signed.stdout)


@pytest.mark.skipif(OPENSSL is None, reason="the openssl command is the judge")
def test_the_fingerprint_is_that_of_the_key_on_the_owners_machine(
    federation: Path, carol: Path
) -> None:
    assert OPENSSL is not None
    der = subprocess.run(
        [OPENSSL, "pkey", "-in", carol / "node.key", "-pubout", "-outform", "DER"],
        capture_output=True,
        check=True,
    ).stdout
    signed = run(*signing(federation, carol / "node.csr", carol / "node.crt"))
    assert public_key_in(signed.stdout) == f"sha256:{hashlib.sha256(der).hexdigest()}"


def test_the_command_that_a_request_recommends_grants_the_hosts_it_asked_for(
    federation: Path, tmp_path: Path
) -> None:
    asked = run(
        "request",
        tmp_path / "c",
        "--federation",
        "tutorial",
        "--role",
        "coordinator",
        "--name",
        "second",
        "--host",
        "model.example",
        "--host",
        "192.0.2.7",
    )
    (line,) = [line for line in asked.stdout.splitlines() if "cairn sign" in line]
    places = {
        "node.csr": tmp_path / "c" / "node.csr",
        "DIR/authority": federation / "authority",
        "second.crt": tmp_path / "second.crt",
    }
    words = [places.get(word, word) for word in line.split()[1:]]
    assert run(*words).exit_code == 0
    shown = run("identity", tmp_path / "second.crt").stdout
    assert "second, localhost, model.example, 192.0.2.7, 127.0.0.1, ::1" in shown


def test_a_signature_overwrites_nothing(federation: Path, carol: Path, tmp_path: Path) -> None:
    (tmp_path / "carol.crt").write_text("mine")
    said = refused(*signing(federation, carol / "node.csr", tmp_path / "carol.crt"))
    assert "carol.crt exists already" in said
    assert (tmp_path / "carol.crt").read_text() == "mine"


def test_a_request_of_another_owner_is_not_signed(
    federation: Path, carol: Path, tmp_path: Path
) -> None:
    said = refused(*signing(federation, carol / "node.csr", tmp_path / "x.crt", name="dora"))
    assert "owner/carol" in said
    assert "owner/dora" in said
    assert not (tmp_path / "x.crt").exists()


def test_what_is_no_request_is_not_signed(federation: Path, tmp_path: Path) -> None:
    file = federation / "bob" / "node.crt"
    said = refused(*signing(federation, file, tmp_path / "x.crt"))
    assert f"{file}: this is no request" in said


def test_a_node_cannot_sign_in_the_place_of_the_authority(
    federation: Path, carol: Path, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    shutil.copytree(federation / "bob", home)
    (home / "authority.crt").write_bytes((home / "node.crt").read_bytes())
    shutil.copy2(home / "node.key", home / "authority.key")
    said = refused(
        "sign",
        carol / "node.csr",
        "--authority",
        home,
        "--role",
        "owner",
        "--name",
        "carol",
        "--out",
        tmp_path / "x.crt",
    )
    assert "not an authority's certificate" in said


def test_identity_shows_a_certificate_an_authority_and_a_request(
    federation: Path, carol: Path
) -> None:
    assert "coordinator/coordinator" in run("identity", federation / "coordinator/node.crt").stdout
    assert "authority of" in run("identity", federation / "authority/authority.crt").stdout
    assert "request of owner/carol" in run("identity", carol / "node.csr").stdout


@pytest.mark.parametrize("name", ["bob/node.key", "aggregator/signing.key"])
def test_identity_never_shows_a_key(federation: Path, name: str) -> None:
    said = refused("identity", federation / name)
    assert "private key, which is never shown" in said
    assert (federation / name).read_text().splitlines()[1] not in said


def test_identity_of_a_missing_file_is_refused(tmp_path: Path) -> None:
    assert "cannot be read" in refused("identity", tmp_path / "nothing.crt")
