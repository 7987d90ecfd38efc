"""Makes words that a peer or a file may hold fit for a terminal.

Control characters, direction overrides and line ends of theirs could hide what a node says, forge a line of
its own or command the terminal. They are shown as escapes, as Python writes them, and a line has an end.
"""

import click

_LONGEST = 4000  # characters


def quoted(text: str, longest: int = _LONGEST) -> str:
    """The text as one printable line."""
    shown = text[:longest]
    if not shown.isprintable():
        shown = "".join(c if c.isprintable() or c == "\t" else _escaped(c) for c in shown)
    return shown if len(text) <= longest else f"{shown}… ({len(text) - longest} more characters)"


def quoted_lines(text: str, longest: int = _LONGEST) -> str:
    """The text as printable lines; only for words of ours, which may have several."""
    return "\n".join(quoted(line, longest) for line in text.split("\n"))


def say(line: str, *, err: bool = False) -> None:
    """Print one line, whatever is in it."""
    click.echo(quoted(line), err=err)


def say_lines(text: str, *, err: bool = False) -> None:
    """Print lines of ours; what others wrote is in them as `quoted` returned it, or has no line ends."""
    click.echo(quoted_lines(text), err=err)


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode()
