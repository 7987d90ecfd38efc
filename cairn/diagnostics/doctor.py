"""What `cairn doctor` checks of a node: what its start does, and whether its ports and peers are there."""

from datetime import UTC, datetime

from cairn.diagnostics.disk import use_findings
from cairn.diagnostics.findings import Finding, note
from cairn.diagnostics.peers import listening_findings, peer_findings
from cairn.diagnostics.preflight import NodeChecks, on_this_machine
from cairn.errors import UsageError
from cairn.identity.credentials import load_identity
from cairn.identity.names import Role
from cairn.identity.trust import load_pinned


def examine(node: NodeChecks, seconds: float) -> list[Finding]:
    """Check everything; each step towards a peer may take so many seconds."""
    findings = on_this_machine(node)
    if node.place is not None:
        findings += use_findings(node.place)
    if not node.listens and not node.peers:
        return findings
    try:
        now = datetime.now(UTC)
        identity = load_identity(node.identity, node.name, now)
        pinned = None
        if node.pin is not None:
            pinned = load_pinned(node.pin, Role.AGGREGATOR, node.name.federation, now)
    except UsageError:
        return [*findings, note("peers", "not asked: they are asked with an identity in order")]
    return [
        *findings,
        *listening_findings(node.listens, identity, seconds),
        *peer_findings(node.peers, identity, pinned, seconds),
    ]
