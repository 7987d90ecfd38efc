"""What every node's process does the same way: signals, limits, and how it ends on an error."""

import logging
import os
import resource
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol

from cairn.errors import CairnError, Fenced, UsageError
from cairn.runtime.failpoints import switch_on_failpoints
from cairn.runtime.logging import end_logging, start_logging
from cairn.runtime.quoting import say, say_lines

EXIT_USAGE = 2
EXIT_FAILED = 1
EXIT_FENCED = 3
EXIT_INTERRUPTED = 130
_OPEN_FILES = 65_536
_OTHER_FILES = 128  # what a node has open beside the connections to its ports
MOST_CONNECTIONS = 4096  # to one port; each costs about 0.1 MB
_FEWEST_CONNECTIONS = 32


class Node(Protocol):
    """What each of the three commands runs."""

    def start(self) -> None:
        """Check and open what it needs, and begin to work. Raises UsageError for a mistake in a file."""

    def wait(self) -> int:
        """Wait until it has ended; returns its exit code. Raises CairnError where it could not go on."""

    def stop(self) -> None:
        """Have it end in good order. From any thread."""


def begin(federation: str, node: str, *, keeps_private: bool, **ids: str) -> None:
    """What a node's process does first. What it writes is for this account only where it `keeps_private`.

    Raises UsageError where the environment asks for faults that this federation may not have.
    """
    if keeps_private:
        os.umask(0o077)
    start_logging(least=logging.INFO, federation=federation, node=node, **ids)
    switch_on_failpoints(federation)


def run_node(node: Node) -> int:
    """Run a node until it has ended, or a signal ends it; returns its exit code."""
    on_stop_signal(node.stop)
    node.start()
    return node.wait()


def forbid_core_dumps() -> None:
    """An aggregator's memory holds updates: a crash must not write it to disk.

    With a limit of 0 Linux would still hand a dump to a program that collects them; with 1 it writes
    none at all (fs/coredump.c).
    """
    resource.setrlimit(resource.RLIMIT_CORE, (1, 1))


def allow_many_connections(ports: int) -> int:
    """Raise the limit of open files as far as this account may: each connection of a peer is one.

    Returns how many connections each of so many ports may take, so that files are left for all else.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = _OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, _OPEN_FILES)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    return min(max(_FEWEST_CONNECTIONS, (most - _OTHER_FILES) // ports), MOST_CONNECTIONS)


def on_stop_signal(stop: Callable[[], None]) -> None:
    """Call `stop`, in a thread of its own, on SIGTERM or SIGINT; a second signal ends the process."""
    called = threading.Event()

    def handle(_signal: int, _frame: object) -> None:
        if called.is_set():
            os._exit(EXIT_INTERRUPTED)  # asked a second time: at once
        else:
            called.set()
            threading.Thread(target=stop, name="stop", daemon=True).start()

    signal.signal(signal.SIGTERM, handle)
    signal.signal(signal.SIGINT, handle)


def exit_with(run: Callable[[], int]) -> None:
    """Run a node to its end and exit with its code; our own errors become one sentence on stderr.

    The process leaves by os._exit: Python would first join threads that wait for peers.
    """
    try:
        code = run()
    except UsageError as error:
        say_lines(f"error: {error}", err=True)  # one for each key of a file that is wrong
        code = EXIT_USAGE
    except Fenced as error:
        say(f"error: {error}", err=True)
        code = EXIT_FENCED
    except (CairnError, OSError) as error:  # an OSError names the file, and a full disk is no bug
        say(f"error: {error}", err=True)
        code = EXIT_FAILED
    except KeyboardInterrupt:  # before the node could set its own way of stopping
        code = EXIT_INTERRUPTED
    end_logging()
    with suppress(OSError):  # nobody may be left to read it
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)
