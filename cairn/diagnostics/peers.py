"""Checks what a node needs of others: that its ports are free, and that its peers answer as they should."""

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from cairn.address import Address
from cairn.diagnostics.disk import CLOCK_SKEW_SECONDS
from cairn.diagnostics.findings import Finding, fault, note, ok, warning
from cairn.diagnostics.preflight import Peer
from cairn.errors import CairnError, Unavailable
from cairn.identity.credentials import Identity
from cairn.identity.names import NodeName, Role
from cairn.identity.trust import PeerTrust, is_believed, of_own_authority
from cairn.protocol.messages import check_protocol
from cairn.transport.channel import dial
from cairn.transport.health_client import Health, ask_health
from cairn.transport.ports import tried
from cairn.transport.probe import NothingListens, ProbeTarget, Unreachable, probe


def listening_findings(
    listens: Mapping[str, str], identity: Identity, seconds: float
) -> list[Finding]:
    """Whether each address can be listened on; where it is taken, whether by this very node."""
    found = []
    for key, (address, trouble) in zip(listens, tried(listens.values()), strict=True):
        if trouble is None:
            found.append(ok("port", f"{key} = {address} is free"))
        elif _answers_itself(address, identity, seconds):
            found.append(note("port", f"{key} = {address}: this node runs now and listens there"))
        else:
            found.append(fault("port", f"{key}: {trouble}"))
    return found


def _answers_itself(address: str, identity: Identity, seconds: float) -> bool:
    at = Address.parse(address).dialled_here
    try:
        trust = of_own_authority(identity, identity.node.role)
        return probe(ProbeTarget(at, identity, trust, seconds)) == identity.node
    except Unreachable:
        return False


def peer_findings(
    peers: Sequence[Peer], identity: Identity, pinned: PeerTrust | None, seconds: float
) -> list[Finding]:
    """What is found at each peer; all are asked at the same time."""

    def ask(peer: Peer) -> list[Finding]:
        pin = pinned if peer.role is Role.AGGREGATOR else peer.pinned
        trust = pin or of_own_authority(identity, peer.role)
        return _found_at(peer, ProbeTarget(peer.address, identity, trust, seconds))

    with ThreadPoolExecutor(max(1, len(peers))) as threads:
        return [finding for found in threads.map(ask, peers) for finding in found]


def _found_at(peer: Peer, target: ProbeTarget) -> list[Finding]:
    try:
        name = probe(target)
        if not is_believed(target.trust, name):
            return [fault(peer.role, _another(peer, name))]
        with dial(peer.address, target.identity, target.trust) as channel:
            asked_ms = time.time() * 1000
            health = ask_health(channel, target.seconds)
            half_ms = (asked_ms + time.time() * 1000) / 2
    except NothingListens as error:
        return [_silent(peer, str(error))]
    except Unreachable as error:
        return [fault(peer.role, f"{peer.key}: {error}")]
    except Unavailable as error:  # after its handshake: it hangs, or has stopped this moment
        sentence = f"{name} at {peer.address} does not say whether it is up ({error}): see its log"
        return [fault(peer.role, sentence)]
    except CairnError as error:
        return [fault(peer.role, f"{peer.address} refuses this node: {error}; ask whoever runs it")]
    return [*_versions(peer, name, health), *_clocks(peer, health, half_ms)]


def _another(peer: Peer, name: NodeName) -> str:
    return (
        f"{peer.key} = {peer.address} leads to {name} and not to the {peer.role}: correct `{peer.key}`"
        " in this node's file"
    )


def _silent(peer: Peer, what: str) -> Finding:
    compare = f"compare `{peer.key}` in this file with `{peer.their_key}` in the {peer.role}'s"
    if peer.must_answer:
        return fault(peer.role, f"{what}: start the {peer.role}, or {compare}")
    return warning(
        peer.role,
        f"{what}: a coordinator listens only while it runs a job, and this node waits for it; if it"
        f" runs one now, {compare}",
    )


def _versions(peer: Peer, name: NodeName, health: Health) -> list[Finding]:
    if not health.serving:
        sentence = (
            f"{name} at {peer.address} is starting or stopping, or its disk is full: ask again in a moment, or"
            " see its log"
        )
        return [fault(peer.role, sentence)]
    if health.protocol is None:
        return [
            note(
                peer.role,
                f"{name} at {peer.address} serves, and is of a Cairn that says no version",
            )
        ]
    try:
        check_protocol(health.protocol, health.software)
    except CairnError as error:
        return [fault(peer.role, f"{name} at {peer.address}: {error}")]
    version = f"Cairn {health.software[:40]} with version {health.protocol} of the protocol"
    return [ok(peer.role, f"{name} at {peer.address} serves, {version}")]


def _clocks(peer: Peer, health: Health, our_ms: float) -> list[Finding]:
    if health.unix_ms is None:
        return []
    ahead = (our_ms - health.unix_ms) / 1000
    if abs(ahead) <= CLOCK_SKEW_SECONDS:
        return [ok("clock", f"it agrees with that of the {peer.role}")]
    return [
        fault(
            "clock",
            f"this machine's clock is {abs(ahead):.0f} seconds {'ahead of' if ahead > 0 else 'behind'}"
            f" that of the {peer.role} at {peer.address}: set whichever is wrong, by NTP",
        )
    ]
