"""Which reasons may depend on an owner's data, and what is told in their place. Pure.

Whoever can choose the model that an owner starts from can choose on what the owner's failure depends. So a
cause that may depend on values is told to that owner alone: its own log and ledger have it, and so has the
answer to its own call. Everybody else is told NOT_COUNTED.
"""

from cairn.v1 import round_pb2 as pb

DEPENDING_ON_DATA = frozenset(
    {
        pb.REASON_TASK_FAILED,
        pb.REASON_WRONG_TENSORS,
        pb.REASON_NON_FINITE,
        pb.REASON_MAGNITUDE_REFUSED,
        pb.REASON_EXAMPLES_REFUSED,
        pb.REASON_TOO_FEW_EXAMPLES,
        pb.REASON_CORRUPT_UPDATE,  # a bool that is neither 0 nor 1
        pb.REASON_NOT_COUNTED,
    }
)


def told_to_others(reason: "pb.Reason") -> "pb.Reason":
    """What anybody but the owner itself may be told of why it was not counted."""
    return pb.REASON_NOT_COUNTED if reason in DEPENDING_ON_DATA else reason
