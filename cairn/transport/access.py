"""Who may call what. Default-deny: a method that has no row here is refused for everybody.

gRPC checks at the handshake only that a peer's certificate comes from the federation's authority, so
this table, enforced around every handler (cairn/transport/authorization.py), is what keeps the roles apart.
"""

from collections.abc import Mapping

from cairn.identity.names import Role

_OWNER = frozenset({Role.OWNER})
_COORDINATOR = frozenset({Role.COORDINATOR})
_ANYONE = frozenset(Role)

ACCESS: Mapping[str, frozenset[Role]] = {
    "/cairn.v1.InvitationService/Attend": _OWNER,
    "/cairn.v1.InvitationService/FetchModel": _OWNER,
    "/cairn.v1.IntakeService/JoinRound": _OWNER,
    "/cairn.v1.IntakeService/SubmitUpdate": _OWNER,
    "/cairn.v1.IntakeService/GetReceipt": _OWNER,
    "/cairn.v1.ReleaseService/RegisterJob": _COORDINATOR,
    "/cairn.v1.ReleaseService/SubmitModel": _COORDINATOR,
    "/cairn.v1.ReleaseService/OpenRound": _COORDINATOR,
    "/cairn.v1.ReleaseService/WatchRound": _COORDINATOR,
    "/cairn.v1.ReleaseService/CollectRelease": _COORDINATOR,
    "/cairn.v1.ReleaseService/AbortRound": _COORDINATOR,
    "/cairn.v1.RecordService/GetStatement": _OWNER | _COORDINATOR,
    "/cairn.v1.RecordService/ListEntries": _OWNER | _COORDINATOR,
    "/grpc.health.v1.Health/Check": _ANYONE,
    "/grpc.health.v1.Health/Watch": frozenset(),
}

# Calls that last: they run in a pool of their own, so that they cannot keep the short ones waiting.
LONG_CALLS = frozenset(
    {
        "/cairn.v1.InvitationService/Attend",
        "/cairn.v1.InvitationService/FetchModel",
        "/cairn.v1.IntakeService/SubmitUpdate",
        "/cairn.v1.ReleaseService/SubmitModel",
        "/cairn.v1.ReleaseService/WatchRound",
        "/cairn.v1.ReleaseService/CollectRelease",
    }
)


def may_call(role: Role, method: str) -> bool:
    return role in ACCESS.get(method, frozenset())


def is_for_everybody(method: str) -> bool:
    return ACCESS.get(method) == _ANYONE
