"""Named points in the nodes' code at which a test makes a process die, freeze or meet a broken disk.

A point is nothing until a node is started with these variables, which only tests set:

    CAIRN_FAILPOINTS=NAME=ACTION[@N],...   what happens when a process comes to a point for the N-th time,
                                           by default the first, and at no other time
    CAIRN_FAILPOINTS_LOG=FILE              to append the name of every point that is reached
    CAIRN_FAILPOINTS_IN=FEDERATION         the federation, made for a test, in which they may act

Actions: kill (SIGKILL to itself), stop (SIGSTOP to itself), exit, raise:EIO and raise:ENOSPC.

A node refuses to start where one of the first two is set and the third does not name its own federation.
Who sets a node's environment can already run any code in it, so this keeps no attacker out, and a point can only
fail: none lets anything pass. What it keeps out is the accident, a variable that was left behind in a shell, a
unit or an image. A plain second switch would be left behind beside the first; a name that has to be that of
the node's certificate turns nothing on in any other federation.
"""

import errno
import os
import re
import signal
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from cairn.errors import UsageError

ACTING, LOGGING, PERMITTING = "CAIRN_FAILPOINTS", "CAIRN_FAILPOINTS_LOG", "CAIRN_FAILPOINTS_IN"

# <role>.<step>.<moment>, in the order of a job. Each stands at one place in the code (tests/chaos).
NAMES = (
    "aggregator.job.before_commit",
    "aggregator.job.before_reply",
    "aggregator.open.before_commit",
    "aggregator.open.after_commit",
    "aggregator.open.before_reply",
    "aggregator.join.before_reply",
    "aggregator.push.header_checked",
    "aggregator.push.complete",
    "aggregator.push.before_receipt",
    "aggregator.seal.before_release",
    "aggregator.release.file_written",
    "aggregator.release.before_commit",
    "aggregator.release.after_commit",
    "aggregator.collect.before_reply",
    "coordinator.run.before_checkpoint",
    "coordinator.open.before_call",
    "coordinator.open.received",
    "coordinator.invite.sent",
    "coordinator.fetch.partial",
    "coordinator.collect.partial",
    "coordinator.release.received",
    "coordinator.model.saved",
    "coordinator.statement.saved",
    "coordinator.checkpoint.before",
    "coordinator.checkpoint.after",
    "coordinator.best.model_saved",
    "coordinator.best.statement_saved",
    "coordinator.ledger.before_head",
    "coordinator.job.finished",
    "owner.join.answered",
    "owner.join.recorded",
    "owner.fetch.partial",
    "owner.fetch.complete",
    "owner.train.done",
    "owner.kept.written",
    "owner.ledger.before_commit",
    "owner.sent.recorded",
    "owner.push.partial",
    "owner.push.accepted",
    "owner.receipt.recorded",
    "owner.outcome.before_record",
)


def failpoint(name: str) -> None:
    """Do what the test that started this process wants to happen here; else nothing."""
    if _reach is not None:
        _reach(name)


def switch_on_failpoints(federation: str, environment: Mapping[str, str] = os.environ) -> None:
    """Have the points act as the environment says; called once by each node, before it opens anything.

    Raises UsageError where they may not act in this federation, and for a name or an action that is none.
    """
    global _reach  # noqa: PLW0603 - a point must cost no more than to look at one name
    acting, log = environment.get(ACTING, ""), environment.get(LOGGING, "")
    if not acting and not log:
        return
    if environment.get(PERMITTING) != federation:
        raise UsageError(
            f"{ACTING if acting else LOGGING} is set: it makes nodes fail on purpose, and works only in a"
            f" federation that was made for a test and that {PERMITTING} names. Unset it"
        )
    _reach = _Points([_deed(text) for text in acting.split(",") if text], log).reach


_reach: Callable[[str], None] | None = None


@dataclass(frozen=True)
class _Deed:
    name: str
    action: str
    at: int


def _deed(text: str) -> _Deed:
    match = re.fullmatch(r"([a-z_.]+)=([a-zA-Z:]+)(?:@([1-9][0-9]*))?", text)
    if match is None:
        raise UsageError(f"{ACTING}: {text!r} is not NAME=ACTION or NAME=ACTION@N")
    name, action, at = match.groups()
    if name not in NAMES:
        raise UsageError(f"{ACTING}: there is no failpoint {name}")
    if action not in _ACTIONS:
        raise UsageError(f"{ACTING}: {action} is none of {', '.join(_ACTIONS)}")
    return _Deed(name, action, int(at or 1))


class _Points:
    """What happens at the points of this process, and how often each was reached."""

    def __init__(self, deeds: list[_Deed], log: str) -> None:
        self._deeds = deeds
        self._log = log
        self._lock = threading.Lock()
        self._reached: Counter[str] = Counter()

    def reach(self, name: str) -> None:
        if name not in NAMES:
            raise AssertionError(f"{name} is not in the list of failpoints")
        with self._lock:
            self._reached[name] += 1
            times = self._reached[name]
            self._note(name)
        for deed in self._deeds:
            if (deed.name, deed.at) == (name, times):
                _ACTIONS[deed.action](name)

    def _note(self, name: str) -> None:
        """One write to a file that is only appended to: lines of several processes do not mix."""
        if self._log:
            file = os.open(self._log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            try:
                os.write(file, f"{name}\n".encode())
            finally:
                os.close(file)


def _raising(number: int) -> Callable[[str], None]:
    def fail(name: str) -> None:
        raise OSError(number, os.strerror(number), f"failpoint {name}")

    return fail


_ACTIONS: dict[str, Callable[[str], None]] = {
    "kill": lambda _: os.kill(os.getpid(), signal.SIGKILL),
    "stop": lambda _: os.kill(os.getpid(), signal.SIGSTOP),
    "exit": lambda _: os._exit(1),
    "raise:EIO": _raising(errno.EIO),
    "raise:ENOSPC": _raising(errno.ENOSPC),
}
