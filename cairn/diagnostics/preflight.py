"""What every node checks at its start: all that lies on its own machine. It asks nobody."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import structlog

from cairn.diagnostics.access import file_access_findings, place_access_findings
from cairn.diagnostics.disk import clock_findings, place_findings
from cairn.diagnostics.findings import Finding, Grade, of_grade
from cairn.diagnostics.identity import identity_findings, pin_findings, signing_key_findings
from cairn.errors import UsageError
from cairn.identity.credentials import IdentityFiles
from cairn.identity.names import NodeName, Role
from cairn.identity.trust import PeerTrust
from cairn.runtime.quoting import quoted
from cairn.storage.directory import WritableDirectory

log = structlog.get_logger()


@dataclass(frozen=True)
class Peer:
    """A node that this one dials: under which key its address stands here, and under which in its own file.

    A coordinator listens only while it runs a job, so that it need not answer. `pinned` is what is accepted of it
    where its certificate is pinned.
    """

    role: Role
    address: str
    key: str
    their_key: str
    pinned: PeerTrust | None = None

    @property
    def must_answer(self) -> bool:
        return self.role is not Role.COORDINATOR


@dataclass(frozen=True)
class NodeChecks:
    """What there is to check of a node, as its role reads it from its file.

    `config` is that file, where there is one. `database` is the name of its ledger's in `place`, where it has one. `listens` and `peers` are by the
    keys of the file. `further` is what only the role can check.
    """

    name: NodeName
    identity: IdentityFiles
    config: Path | None = None
    pin: Path | None = None
    signing_key: Path | None = None
    place: WritableDirectory | None = None
    database: str = ""
    listens: Mapping[str, str] = field(default_factory=dict)
    peers: Sequence[Peer] = ()
    further: Sequence[Finding] = ()


def preflight(node: NodeChecks) -> None:
    """Check at a node's start what lies on its own machine. Warnings are logged.

    Raises UsageError with a line for each fault. Peers are not asked: a node waits for them.
    """
    findings = on_this_machine(node)
    for finding in of_grade(findings, Grade.WARNING):
        log.warning("a check at the start", check=finding.check, found=finding.sentence)
    faults = of_grade(findings, Grade.FAULT)
    if faults:
        raise UsageError("\n".join(quoted(finding.sentence) for finding in faults))


def on_this_machine(node: NodeChecks) -> list[Finding]:
    """The checks that ask nobody."""
    now = datetime.now(UTC)
    findings = identity_findings(node.identity, node.name, now)
    if node.pin is not None:
        findings += pin_findings(node.pin, node.name.federation, node.identity.authority, now)
    if node.signing_key is not None:
        findings += signing_key_findings(node.signing_key)
    trusted = (node.config, node.identity.authority, node.pin)
    findings += file_access_findings(path for path in trusted if path is not None)
    if node.place is not None:
        findings += place_access_findings(node.place)
        writing = place_findings(node.place)
        findings += writing
        if node.database and not of_grade(writing, Grade.FAULT):
            findings += clock_findings(node.place, node.database, now)
    return [*findings, *node.further]
