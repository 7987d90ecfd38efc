"""Makes all files of a whole federation on one machine: for a demo, for tests, or to hand them out."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from cairn.address import Address
from cairn.errors import UsageError
from cairn.identity.authority import (
    Authority,
    Subject,
    issue,
    new_authority,
    new_key,
    new_request,
    new_signing_key,
)
from cairn.identity.names import NodeName, Role
from cairn.identity.pem import PRIVATE, PUBLIC, write_new
from cairn.identity.signing_keys import load_signing_key, public_signing_key_text
from cairn.provisioning.plan import AUTHORITY, FederationPlan, read_tasks, usual_floor
from cairn.provisioning.render import aggregator_toml, coordinator_toml, owner_toml

__all__ = ["FederationPlan", "usual_floor", "write_federation"]


def write_federation(directory: Path, plan: FederationPlan) -> None:
    """Make the authority, the nodes' keys and certificates, and a TOML file for each node.

    Raises UsageError, and changes nothing, where one of these is there already.
    """
    tasks = read_tasks(plan.tasks_file) if plan.tasks_file else {}
    _check_free(directory, plan)
    try:
        with _staging(directory) as staging:
            signing_key = _make_identities(staging, plan)
            texts = {
                Role.AGGREGATOR.value: aggregator_toml(plan),
                Role.COORDINATOR.value: coordinator_toml(plan, signing_key),
                **{name: owner_toml(plan, name, signing_key, tasks) for name in plan.owners},
            }
            for name, text in texts.items():
                write_new(staging / f"{name}.toml", text.encode(), PUBLIC)
            _publish(staging, directory)
    except OSError as error:
        raise UsageError(f"{directory} cannot be made ({error.strerror})") from error


def _check_free(directory: Path, plan: FederationPlan) -> None:
    nodes = (Role.AGGREGATOR.value, Role.COORDINATOR.value, *plan.owners)
    targets = (AUTHORITY, *nodes, *(f"{name}.toml" for name in nodes))
    existing = [name for name in targets if (directory / name).exists()]
    if existing:
        raise UsageError(
            f"{directory} already holds {', '.join(existing)}; remove it or choose another directory"
        )


@contextmanager
def _staging(directory: Path) -> Iterator[Path]:
    """A directory on the same disk, so that what was made in it is put in place by renaming."""
    beside = directory if directory.exists() else directory.absolute().parent
    beside.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=".cairn-", dir=beside))
    try:
        yield staging
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _publish(staging: Path, directory: Path) -> None:
    if not directory.exists():
        staging.rename(directory)
        return
    # The TOML files come last: what they name is there before them.
    for path in sorted(staging.iterdir(), key=lambda path: path.is_file()):
        path.rename(directory / path.name)


def _make_identities(directory: Path, plan: FederationPlan) -> str:
    """Make every key and certificate; return the public signing key of the aggregator, as text."""
    now = datetime.now(UTC)
    authority = new_authority(plan.name, now)
    _write(directory / AUTHORITY, {"authority.crt": authority.certificate}, PUBLIC)
    _write(directory / AUTHORITY, {"authority.key": authority.key}, PRIVATE)

    hosts = tuple(Address.parse(a).host for a in (plan.intake_address, plan.release_address))
    home = directory / Role.AGGREGATOR
    aggregator = NodeName(plan.name, Role.AGGREGATOR, "aggregator")
    pinned = _make_node(home, authority, Subject(aggregator, hosts), now)
    _write(home, {"signing.key": new_signing_key()}, PRIVATE)

    coordinator = NodeName(plan.name, Role.COORDINATOR, "coordinator")
    subjects = [Subject(coordinator, (Address.parse(plan.coordinator_address).host,))]
    subjects += [Subject(NodeName(plan.name, Role.OWNER, owner)) for owner in plan.owners]
    for subject in subjects:
        _make_node(directory / subject.node.name, authority, subject, now)
        _write(directory / subject.node.name, {"aggregator.crt": pinned}, PUBLIC)
    return public_signing_key_text(load_signing_key(home / "signing.key"))


def _make_node(directory: Path, authority: Authority, subject: Subject, now: datetime) -> bytes:
    """Make a node's key and certificate; return the certificate."""
    key = new_key()
    certificate = issue(authority, new_request(subject, key), subject, now)
    _write(directory, {"node.key": key}, PRIVATE)
    _write(directory, {"node.crt": certificate, "authority.crt": authority.certificate}, PUBLIC)
    return certificate


def _write(directory: Path, files: dict[str, bytes], mode: int) -> None:
    directory.mkdir(mode=0o700, exist_ok=True)
    for name, content in files.items():
        write_new(directory / name, content, mode)
