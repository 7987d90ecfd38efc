"""What can go wrong, by meaning.

    CairnError
     ├── UsageError            a person's mistake in a file or on the command line
     ├── InvalidMessage        the peer's message is malformed or breaks a rule
     │    └── UpdateRefused    the update cannot be counted; says why by its reason
     ├── CallerNotAllowed      the caller's certificate does not permit this
     ├── NotFound              there is no such job, round, receipt or model
     ├── WrongState            the right message at the wrong time
     ├── Conflict              something else was accepted under the same name
     ├── TooMuch               beyond an agreed limit
     └── Unavailable           the peer cannot be reached now

Pure code raises these; `cairn/guard.py` maps them to gRPC statuses and `cairn/rpc.py` back.
"""

from cairn.v1 import round_pb2 as pb


class CairnError(Exception):
    """The root. Its text is fit for the peer and for a person: no values, no paths of ours."""

    reason: "pb.Reason" = pb.REASON_UNSPECIFIED


class UsageError(CairnError):
    """A mistake in a file, an argument or the set-up; the text names the cause and the cure."""


class InvalidMessage(CairnError):
    """The message is malformed or breaks a rule of the protocol."""


class UpdateRefused(InvalidMessage):
    """The update cannot be counted."""

    def __init__(self, message: str, reason: "pb.Reason" = pb.REASON_UNSPECIFIED) -> None:
        super().__init__(message)
        self.reason = reason


class CallerNotAllowed(CairnError):
    """The caller's role or name does not permit the call."""


class NotFound(CairnError):
    """There is no such job, round, receipt or model."""


class WrongState(CairnError):
    """The message came at the wrong time; to repeat it does not help."""


class Conflict(CairnError):
    """Something else was accepted under the same name."""


class TooMuch(CairnError):
    """Beyond an agreed limit."""


class Unavailable(CairnError):
    """The peer cannot be reached, or broke off; to repeat the call may help."""
