"""`cairn verify` and `cairn ledger`."""

import signal
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cairn.cli.errors import mistakes_explained
from cairn.errors import UsageError
from cairn.runtime.quoting import say

if TYPE_CHECKING:
    from cairn.verify.ledger import Finding

_path = click.Path(path_type=Path)
_MOST_LINES = 1000
_TERMINATED = 128 + signal.SIGTERM
_NOT_ENDED = (
    "Not ended: nothing that is there is wrong, and each line BEHIND says what is not there yet. Run the"
    " coordinator's command again, which fetches the rest, or name a newer copy of the ledger with --ledger;"
    " then verify again."
)


@click.command("verify")
@click.argument("path", type=_path)
@click.option("--key", metavar="ed25519:...", help="The aggregator's signing key.")
@click.option(
    "--config",
    type=_path,
    metavar="NODE.toml",
    help="Take the key out of the TOML file of a node that pins it.",
)
@click.option(
    "--ledger",
    type=_path,
    metavar="FILE_OR_DIR",
    help="Check against this copy of the aggregator's ledger: a run's folder or a state directory.",
)
@click.option(
    "--statement",
    "statements",
    type=_path,
    metavar="FILE",
    multiple=True,
    help="With an owner's ledger: tell whether this release counted the owner's update.",
)
@mistakes_explained
def verify(
    *,
    path: Path,
    key: str | None,
    config: Path | None,
    ledger: Path | None,
    statements: tuple[Path, ...],
) -> None:
    """Check PATH offline: a run's folder, a release statement, or a node's ledger.

    Prints a line for each thing that was checked: ok, FAILED where it is not as it was signed and recorded
    (the line names the entry and the reason), or BEHIND where nothing is wrong and something is not there
    yet, as in a run that was killed. Exit codes: 0 everything is as it was signed and recorded, 1 something
    FAILED or is BEHIND, 2 a mistake in the call.
    """
    from cairn.cli.verify_key import pinned_key
    from cairn.verify.ledger import failed
    from cairn.verify.verify import Evidence
    from cairn.verify.verify import verify as check

    with _ending_in_order():
        against = Evidence(pinned_key(key, config), ledger, statements)
        try:
            findings = check(path, against)
        except MemoryError:
            findings = [failed(path.name, "to check it takes more memory than there is")]
    sys.exit(_report(findings))


def _report(findings: Sequence["Finding"]) -> int:
    """Print what was found, not more than so many lines of a grade, and return the exit code."""
    from cairn.verify.ledger import Grade

    printed = Counter[Grade]()
    for finding in findings:
        printed[finding.grade] += 1
        if printed[finding.grade] <= _MOST_LINES:
            say(str(finding))
    for grade, number in printed.items():
        if number > _MOST_LINES:
            say(f"{grade:6} {number - _MOST_LINES} more, which are not printed")
    if printed[Grade.BEHIND] and not printed[Grade.FAILED]:
        say(_NOT_ENDED)
    return 1 if printed[Grade.FAILED] or printed[Grade.BEHIND] else 0


@click.command("ledger")
@click.argument("path", type=_path)
@click.option("--full", is_flag=True, help="Print signed messages too, in base64.")
@click.option(
    "--refusals",
    is_flag=True,
    help="Print what an aggregator refused, and to whom: only its state directory has that.",
)
@mistakes_explained
def ledger(*, path: Path, full: bool, refusals: bool) -> None:
    """Print the entries of the ledger at PATH as JSON lines.

    PATH is a node's state directory, a run's folder or a ledger.jsonl. Prints what is there: whether
    nothing was changed is what `cairn verify` tells.
    """
    from cairn.ledger.lines import lines_for_people

    with _ending_in_order():
        for line in lines_for_people(path, full=full, refusals=refusals):
            click.echo(line)  # JSON in ASCII


@contextmanager
def _ending_in_order() -> Iterator[None]:
    """End on SIGTERM as on an error, so that no temporary file is left; name what cannot be looked at."""

    def end(_signal: int, _frame: object) -> None:
        sys.exit(_TERMINATED)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    except OSError as error:
        if error.filename is None:  # as where nobody reads what is printed
            raise
        raise UsageError(f"{error.filename}: it cannot be read: {error.strerror}") from None
    finally:
        signal.signal(signal.SIGTERM, before)
