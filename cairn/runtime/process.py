"""What every node's process does the same way: logging, signals, and how it ends on an error."""

import io
import logging
import os
import resource
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Protocol, TextIO, cast

import structlog

from cairn.errors import CairnError, Fenced, UsageError
from cairn.runtime.clock import Clock
from cairn.runtime.failpoints import switch_on_failpoints
from cairn.runtime.log_limit import LogLimit
from cairn.runtime.quoting import quoted, quoted_lines, say, say_lines

EXIT_USAGE = 2
EXIT_FAILED = 1
EXIT_FENCED = 3
EXIT_INTERRUPTED = 130
_OPEN_FILES = 65_536
_OTHER_FILES = 128  # what a node has open beside the connections to its ports
MOST_CONNECTIONS = 4096  # to one port; each costs about 0.1 MB
_FEWEST_CONNECTIONS = 32

_log_limit = LogLimit(Clock())


class Node(Protocol):
    """What each of the three commands runs."""

    def start(self) -> None:
        """Check and open what it needs, and begin to work. Raises UsageError for a mistake in a file."""

    def wait(self) -> int:
        """Wait until it has ended; returns its exit code. Raises CairnError where it could not go on."""

    def stop(self) -> None:
        """Have it end in good order. From any thread."""


class _Unbreakable(io.TextIOBase):
    """Stderr for the log: where nobody reads it any more, the node works on."""

    def write(self, text: str) -> int:
        with suppress(OSError):
            sys.stderr.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError):
            sys.stderr.flush()


def begin(federation: str, node: str, *, keeps_private: bool, **ids: str) -> None:
    """What a node's process does first. What it writes is for this account only where it `keeps_private`.

    Raises UsageError where the environment asks for faults that this federation may not have.
    """
    if keeps_private:
        os.umask(0o077)
    start_logging(federation=federation, node=node, **ids)
    switch_on_failpoints(federation)


def run_node(node: Node) -> int:
    """Run a node until it has ended, or a signal ends it; returns its exit code."""
    on_stop_signal(node.stop)
    node.start()
    return node.wait()


def start_logging(**ids: str) -> None:
    """Log to stderr: lines for a person at a terminal, JSON otherwise. `ids` is bound to every line.

    CAIRN_LOG=json or CAIRN_LOG=text overrides the choice; CAIRN_LOG_LEVEL=warning leaves out what
    went well.
    """
    level = logging.getLevelNamesMapping().get(os.environ.get("CAIRN_LOG_LEVEL", "").upper())
    style = os.environ.get("CAIRN_LOG") or ("text" if sys.stderr.isatty() else "json")
    processors: list[Any] = [
        _log_limit,
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(
            fmt="iso" if style == "json" else "%H:%M:%S", utc=style == "json"
        ),
    ]
    if style == "json":
        processors += [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    else:
        processors += [
            _fit_for_a_terminal,
            structlog.dev.ConsoleRenderer(
                colors=sys.stderr.isatty(), exception_formatter=_traceback
            ),
        ]
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(level or logging.INFO),
        logger_factory=structlog.WriteLoggerFactory(file=cast("TextIO", _Unbreakable())),
        cache_logger_on_first_use=False,
    )
    structlog.contextvars.clear_contextvars()
    structlog.contextvars.bind_contextvars(**(ids if style == "json" else {}))


def _fit_for_a_terminal(_logger: object, _method: str, event: Any) -> Any:
    """Quote the texts; the renderer shows everything else by its repr, which is printable. JSON escapes by itself."""
    return {
        quoted(key): quoted(value) if isinstance(value, str) else value
        for key, value in event.items()
    }


def _traceback(into: TextIO, exc_info: Any) -> None:
    # A richer one shows the variables of every frame, and one of them may be an update.
    plain = io.StringIO()
    structlog.dev.plain_traceback(plain, exc_info)
    into.write(quoted_lines(plain.getvalue()))


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
    _log_limit.report()
    with suppress(OSError):  # nobody may be left to read it
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)
