"""The commands of `cairn` that make and show identities."""

import functools
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import click
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from cairn.address import Address
from cairn.cli.errors import mistakes_explained
from cairn.errors import UsageError
from cairn.identity.authority import (
    AUTHORITY_DAYS,
    NODE_DAYS,
    Authority,
    Subject,
    federation_of,
    issue,
    load_request,
    new_key,
    new_request,
)
from cairn.identity.credentials import fingerprint, key_fingerprint
from cairn.identity.describe import describe
from cairn.identity.names import NODE_NAME_PATTERN, NodeName, Role
from cairn.identity.pem import PRIVATE, PUBLIC, load_certificate, load_key, read_file, write_new
from cairn.identity.signing_keys import load_signing_key, public_signing_key_text
from cairn.provisioning.create import FederationPlan, usual_floor, write_federation
from cairn.provisioning.plan import AUTHORITY
from cairn.runtime.quoting import say_lines

_a_path = click.Path(path_type=Path)
_days = click.IntRange(1, AUTHORITY_DAYS)
_role = click.Choice([role.value for role in Role])
_hosts = click.option(
    "--host",
    "hosts",
    multiple=True,
    help="A host name or IP address of the node, besides localhost.",
)
_address = functools.partial(click.option, metavar="HOST:PORT", show_default=True)


@click.command()
@click.argument("directory", metavar="DIR", type=_a_path)
@click.option("--owner", "owners", multiple=True, required=True, help="An owner; give two or more.")
@click.option("--federation", help="The federation's name.  [default: the directory's]")
@click.option("--floor", type=int, help="The smallest cohort.  [default: 3, or 2 of two owners]")
@_address("--coordinator", default="localhost:7441", help="Where owners dial the coordinator.")
@_address("--aggregator", default="localhost:7443", help="Where owners dial the aggregator.")
@_address("--aggregator-release", help="Where the coordinator dials it.  [default: its port 7444]")
@click.option(
    "--tasks",
    type=_a_path,
    help="A TOML file of [tasks.NAME] tables, with the keys of an owner's file, for every owner.",
)
@click.option("--data", type=_a_path, help="The directory that {data} means in the tasks file.")
@mistakes_explained
def init(
    *,
    directory: Path,
    owners: tuple[str, ...],
    federation: str | None,
    floor: int | None,
    coordinator: str,
    aggregator: str,
    aggregator_release: str | None,
    tasks: Path | None,
    data: Path | None,
) -> None:
    """Make the keys, certificates and files of a whole federation in DIR, on this machine."""
    plan = FederationPlan(
        name=federation or _federation_named_like(directory),
        owners=owners,
        floor=usual_floor(len(owners)) if floor is None else floor,
        coordinator_address=coordinator,
        intake_address=aggregator,
        release_address=aggregator_release or str(replace(Address.parse(aggregator), port=7444)),
        tasks_file=tasks,
        data=data,
    )
    write_federation(directory, plan)
    say_lines(_made(directory, plan))


def _federation_named_like(directory: Path) -> str:
    name = directory.absolute().name
    return name if re.fullmatch(NODE_NAME_PATTERN, name) else "federation"


def _made(directory: Path, plan: FederationPlan) -> str:
    key = load_signing_key(directory / "aggregator" / "signing.key")
    files = {AUTHORITY: directory / AUTHORITY / "authority.crt"}
    for name in ("aggregator", "coordinator", *sorted(plan.owners)):
        files[name] = directory / name / "node.crt"
    owners = [f"  owner-node --config {directory / name}.toml" for name in sorted(plan.owners)]
    return "\n".join(
        [
            f"Made the federation {plan.name} with a floor of {plan.floor} in {directory}",
            *(f"  {name:<14}{_fingerprint(path)}" for name, path in files.items()),
            f"  {'signing key':<14}{public_signing_key_text(key)}",
            "Each node needs its own directory and its own .toml file, and nothing else of these.",
            "Next, each in a terminal of its own:",
            f"  aggregator-node --config {directory / 'aggregator.toml'}",
            *owners,
            f"  coordinator run JOB.toml --config {directory / 'coordinator.toml'}",
        ]
    )


def _fingerprint(path: Path) -> str:
    return fingerprint(load_certificate(path).public_bytes(Encoding.DER))


@click.command()
@click.argument("directory", metavar="DIR", type=_a_path)
@click.option("--federation", required=True, help="The federation to join.")
@click.option("--role", type=_role, required=True, help="What this node is to be.")
@click.option("--name", required=True, help="The node's name in the federation.")
@_hosts
@mistakes_explained
def request(directory: Path, federation: str, role: str, name: str, hosts: tuple[str, ...]) -> None:
    """Make this node's key in DIR, and a request for its certificate. The key never leaves DIR."""
    subject = Subject(NodeName(federation, Role(role), name), hosts)
    key = new_key()
    content = new_request(subject, key)
    _make_both(directory, key, content)
    also = "".join(f" --host {host}" for host in hosts)
    say_lines(
        f"Made {directory / 'node.key'}, which stays here, and {directory / 'node.csr'}\n"
        f"  public key  {key_fingerprint(load_request(content))}\n"
        "Next: send node.csr to whoever runs the aggregator, and compare the public key by phone."
        " They run\n"
        f"  cairn sign node.csr --authority DIR/authority --role {role} --name {name}{also}"
        f" --out {name}.crt\n"
        f"and send back {name}.crt, which becomes {directory / 'node.crt'}, with authority.crt and the"
        " aggregator's node.crt, and the line aggregator_signing_key of any node's file."
    )


def _make_both(directory: Path, key: bytes, content: bytes) -> None:
    """Make the key and its request, or neither: a request without its key is of no use."""
    if (directory / "node.csr").exists():
        raise UsageError(f"{directory / 'node.csr'} exists already; choose another directory")
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{directory} cannot be made ({error.strerror})") from error
    write_new(directory / "node.key", key, PRIVATE)
    write_new(directory / "node.csr", content, PUBLIC)


@click.command()
@click.argument("file", metavar="REQUEST", type=_a_path)
@click.option(
    "--authority",
    "home",
    type=_a_path,
    required=True,
    help="The directory that holds authority.crt and authority.key.",
)
@click.option("--role", type=_role, required=True, help="What the node is to be.")
@click.option("--name", required=True, help="Whose request this is, as you know it.")
@_hosts
@click.option(
    "--days", type=_days, default=NODE_DAYS, show_default=True, help="How long it is valid."
)
@click.option("--out", type=_a_path, required=True, help="The certificate to make.")
@mistakes_explained
def sign(
    *, file: Path, home: Path, role: str, name: str, hosts: tuple[str, ...], days: int, out: Path
) -> None:
    """Issue a certificate for a node's REQUEST. It states what you state here, not what was asked."""
    certificate = load_certificate(home / "authority.crt")
    authority = Authority(
        certificate.public_bytes(Encoding.PEM), load_key(home / "authority.key")[1]
    )
    with _about(home / "authority.crt"):
        node = NodeName(federation_of(certificate), Role(role), name)
    content = read_file(file)
    with _about(file):
        public_key = key_fingerprint(load_request(content))
    issued = issue(authority, content, Subject(node, hosts), datetime.now(UTC), days)
    write_new(out, issued, PUBLIC)
    end = x509.load_pem_x509_certificate(issued).not_valid_after_utc
    say_lines(
        f"Issued {out} to {node}, valid until {end:%Y-%m-%d}\n"
        f"  public key  {public_key}\n"
        "Hand it out only if the node's `cairn request` printed the same public key. With it go"
        f" {home / 'authority.crt'}, the aggregator's node.crt, and"
        " the line aggregator_signing_key of any node's file."
    )
    if node.role is Role.OWNER:
        say_lines(
            f'An owner takes part once "{name}" stands in `owners` of the aggregator\'s file.'
        )


@click.command()
@click.argument("file", metavar="FILE", type=_a_path)
@mistakes_explained
def identity(file: Path) -> None:
    """Say who a certificate is of, how long it is valid and what it may do."""
    content = read_file(file)
    with _about(file):
        say_lines(describe(content, datetime.now(UTC)))


@contextmanager
def _about(file: Path) -> Iterator[None]:
    """Name the file in the errors of code that sees only its content."""
    try:
        yield
    except UsageError as error:
        raise UsageError(f"{file}: {error}") from error
