"""The process that others are forked off: `python parent.py DESCRIPTOR MODULE...` imports the modules and waits.

Its end of the socket is the descriptor; `tests/warm/start.py` has the other one. It has a single thread, so that its
forks are safe, and ends when the other end is closed.
"""

import fcntl
import importlib
import json
import os
import runpy
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.append(str(Path(__file__).parents[2]))  # for `tests`

from tests.warm.adoption import NAME, adopt_orphans, be_called
from tests.warm.start import Parent, Subprocess

_MESSAGE_BYTES = 1 << 18
_ABOVE_ALL_TARGETS, _MOST_DESCRIPTORS = 500, 1 << 16
# The modules of ours that start processes, by the script that runs them.
_STARTERS = {
    "node.py": "owner_node.training.child",
    "owner-node": "owner_node.training.child",
    "coordinator": "coordinator.initial_model",
    "cairn demo": "cairn.runtime.supervisor",
}


def _serve(requests: socket.socket) -> None:
    """Fork off what is asked for, until the other end is closed."""
    be_called(NAME)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    while True:
        message, descriptors, _, _ = socket.recv_fds(requests, _MESSAGE_BYTES, 64)
        if not message:
            os._exit(0)
        pid = _fork_for_adoption(json.loads(message), descriptors)
        for descriptor in descriptors:
            os.close(descriptor)
        requests.sendall(str(pid).encode())


def _fork_for_adoption(order: dict[str, Any], descriptors: Sequence[int]) -> int:
    """Fork twice: once the one between has gone, the nearest process above that adopts is the parent."""
    ours, theirs = os.pipe()
    if between := os.fork():
        os.close(theirs)
        pid = int(os.read(ours, 20))
        os.close(ours)
        os.waitpid(between, 0)
        return pid
    if pid := os.fork():
        os.write(theirs, str(pid).encode())
        os._exit(0)
    os.close(ours)
    os.close(theirs)
    _end_with(lambda: _become(order, descriptors))
    raise AssertionError


def _end_with(run: Callable[[], None]) -> None:
    """End as Python ends a process, except that nothing is taken apart."""
    code = 1
    try:
        run()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException as error:  # noqa: BLE001 - as at the end of any Python process
        sys.excepthook(type(error), error, error.__traceback__)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _become(order: dict[str, Any], descriptors: Sequence[int]) -> None:
    """Be the process that was asked for, with its descriptors, session, environment and arguments."""
    _take(descriptors, order["targets"])
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.clear()
    os.environ.update(order["environment"])
    os.chdir(order["directory"])
    sys.argv = order["command"]
    script = Path(sys.argv[0])
    be_called(script.name)
    if "PYTHONUNBUFFERED" in os.environ:
        sys.stdout.reconfigure(write_through=True)  # type: ignore[union-attr]  # it is a text file
    name = script.parent.name.replace("_", "-") if script.name == "__main__.py" else script.name
    starter = _STARTERS.get(name) or _STARTERS.get(" ".join([name, *sys.argv[1:2]]))
    if starter is not None:
        _have_a_parent(starter)
    runpy.run_path(str(script), run_name="__main__")


def _take(descriptors: Sequence[int], targets: Sequence[int]) -> None:
    """Put each descriptor where it is wanted, and close all others."""
    above = [fcntl.fcntl(one, fcntl.F_DUPFD, _ABOVE_ALL_TARGETS) for one in descriptors]
    for descriptor, target in zip(above, targets, strict=True):
        os.dup2(descriptor, target)
    last = -1
    for target in sorted(targets):
        if last + 1 < target:  # else Python would close all
            os.closerange(last + 1, target)
        last = target
    os.closerange(last + 1, _MOST_DESCRIPTORS)


def _have_a_parent(starter: str) -> None:
    """Before this process has threads: fork off what forks off the processes that the module starts."""
    adopt_orphans()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    if os.fork() == 0:
        ours.close()
        for number in (0, 1, 2):
            os.dup2(os.open(os.devnull, os.O_RDWR), number)
        _serve(theirs)
    theirs.close()
    parent = Parent(ours)
    vars(importlib.import_module(starter))["subprocess"] = Subprocess(lambda: parent)


if __name__ == "__main__":
    for _module in sys.argv[2:]:
        importlib.import_module(_module)
    _serve(socket.socket(fileno=int(sys.argv[1])))
