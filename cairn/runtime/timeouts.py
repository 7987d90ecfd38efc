"""The timeouts of Cairn, all of them: how long anything is waited for, in seconds.

Every other limit of a wait is derived from these where it is needed. docs/protocol/states.md has them as a table,
with what follows from each. How often something is looked at or tried again is no timeout but a pace, and
stays with the code that keeps it, under a name with EVERY or PAUSE.
"""

# Defaults of settings; the files of a job and of the nodes set their own.
ROUND_DEADLINE_SECONDS = 600  # ends a round: it is released as it is, or aborted below the floor
LEASE_SECONDS = 30  # ends an owner's place in a round: the round goes on without it
GATHER_SECONDS = 60  # ends the wait for enough owners: the coordinator ends, and can be run again
RECONNECT_TIMEOUT_SECONDS = 60  # ends a coordinator's wait for an aggregator: the node ends
STANDBY_TIMEOUT_SECONDS = 3600  # ends others' wait for a coordinator, or an owner's in a round: so

# The same everywhere, so that two nodes agree on when the other is gone.
IDLE_SECONDS = 30  # ends a transfer that brings nothing: it goes on from there, or begins again
CALL_SECONDS = 10  # ends a short call, a connecting, a ping: the peer counts as unreachable
SHUTDOWN_SECONDS = 5  # ends a node's last words at its stop: it goes without an answer
SHORT_WAIT_SECONDS = 3.0  # ends a best-effort step: a check fails, a round begins without


def rest(seconds: float) -> float:
    """What is left of a window, but never none: a call must have the time to be refused."""
    return max(1.0, seconds)
