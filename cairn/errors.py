"""What can go wrong, by meaning.

    CairnError
     ├── UsageError            a person's mistake in a file or on the command line
     ├── InvalidMessage        the peer's message is malformed or breaks a rule
     │    └── UpdateRefused    the update cannot be counted
     ├── CallerNotAllowed      the caller's certificate does not permit this
     ├── NotFound              there is no such job, round, receipt or model
     ├── WrongState            the right message at the wrong time
     ├── Fenced                another process has taken over what this one did
     ├── Conflict              something else was accepted under the same name
     ├── LimitExceeded         beyond an agreed limit
     └── Unavailable           the peer cannot be reached now
          └── PeerUntrusted    nor later, until a certificate or an address is mended

Pure code raises these; `cairn/transport/error_mapping.py` maps them to gRPC statuses and
`cairn/transport/status.py` back. Each carries a reason of the fixed list in `round.proto`: its kind's own
where none is given.
"""

from cairn.v1 import round_pb2 as pb


class CairnError(Exception):
    """The root. Its text is fit for the peer and for a person: no values, no paths of ours."""

    reason: "pb.Reason" = pb.REASON_UNSPECIFIED

    def __init__(self, message: str, reason: "pb.Reason | None" = None) -> None:
        super().__init__(message)
        if reason is not None:
            self.reason = reason


class UsageError(CairnError):
    """A mistake in a file, an argument or the set-up; the text names the cause and the cure."""


class InvalidMessage(CairnError):
    """The message is malformed or breaks a rule of the protocol."""

    reason = pb.REASON_MALFORMED


class UpdateRefused(InvalidMessage):
    """The update cannot be counted; the reason says why."""


class CallerNotAllowed(CairnError):
    """The caller's role or name does not permit the call."""

    reason = pb.REASON_NOT_ALLOWED


class NotFound(CairnError):
    """There is no such job, round, receipt or model."""

    reason = pb.REASON_NOT_FOUND


class WrongState(CairnError):
    """The message came at the wrong time; to repeat it does not help."""

    reason = pb.REASON_OUT_OF_TURN


class Fenced(CairnError):
    """A later process of the same node has taken over; this one may do nothing more."""

    reason = pb.REASON_FENCED


class Conflict(CairnError):
    """Something else was accepted under the same name."""

    reason = pb.REASON_CONFLICT


class LimitExceeded(CairnError):
    """Beyond an agreed limit."""

    reason = pb.REASON_TOO_MUCH


class Unavailable(CairnError):
    """The peer cannot be reached, or broke off; to repeat the call may help."""


class PeerUntrusted(Unavailable):
    """One of the two does not accept the other: to repeat the call helps once somebody has mended it."""
