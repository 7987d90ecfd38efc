"""A node's log: lines for a person at a terminal, JSON otherwise."""

import io
import logging
import os
import sys
from contextlib import suppress
from typing import Any, TextIO, cast

import structlog

from cairn.runtime.clock import Clock
from cairn.runtime.log_limit import LogLimit
from cairn.runtime.quoting import quoted, quoted_lines

_log_limit = LogLimit(Clock())


class _Unbreakable(io.TextIOBase):
    """Stderr for the log: where nobody reads it any more, the node works on."""

    def write(self, text: str) -> int:
        with suppress(OSError):
            sys.stderr.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError):
            sys.stderr.flush()


def start_logging(*, least: int = logging.INFO, **ids: str) -> None:
    """Log to stderr: lines for a person at a terminal, JSON otherwise. `ids` is bound to every line.

    CAIRN_LOG=json or CAIRN_LOG=text overrides the choice; CAIRN_LOG_LEVEL=warning leaves out what
    went well; where it says nothing, what is below `least`, a level of Python's logging, is left out.
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
        wrapper_class=structlog.make_filtering_bound_logger(level or least),
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


def end_logging() -> None:
    """Log how many lines were left out so far."""
    _log_limit.report()
