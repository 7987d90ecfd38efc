"""`cairn verify` and `cairn ledger`."""

import signal
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import click
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from pydantic import ConfigDict

from cairn.cli.errors import mistakes_explained
from cairn.config import Settings, SigningKeyText
from cairn.diagnostics.findings import Finding, Grade, failed
from cairn.errors import UsageError
from cairn.identity.signing_keys import parse_signing_key_text
from cairn.ledger.files import lines_for_people
from cairn.runtime.quoting import say
from cairn.verify.verify import Evidence
from cairn.verify.verify import verify as check

_path = click.Path(path_type=Path)
_MOST_LINES = 1000
_GRADE_WIDTH = 7
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
    with _ending_in_order():
        against = Evidence(pinned_key(key, config), ledger, statements)
        try:
            findings = check(path, against)
        except MemoryError:
            findings = [failed(path.name, "to check it takes more memory than there is")]
    sys.exit(_report(findings))


class _PinningNode(Settings):
    """What of a node's file is needed here; the node itself checks the rest."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    aggregator_signing_key: SigningKeyText | None = None


def pinned_key(text: str | None, config: Path | None) -> Ed25519PublicKey | None:
    """The key that was given or that a node's file pins; None where neither was named.

    Raises UsageError where both were, or where the file pins none: an aggregator's own does not.
    """
    if text is not None and config is not None:
        raise UsageError("--key and --config both name the aggregator's key: give one of them")
    if config is not None:
        text = _PinningNode.load(config).aggregator_signing_key
        if text is None:
            raise UsageError(
                f"{config} has no aggregator_signing_key: name the file of an owner or of a coordinator"
            )
    return parse_signing_key_text(text) if text is not None else None


def _report(findings: Sequence[Finding]) -> int:
    """Print what was found, not more than so many lines of a grade, and return the exit code."""
    printed = Counter[Grade]()
    for finding in findings:
        printed[finding.grade] += 1
        if printed[finding.grade] <= _MOST_LINES:
            say(finding.line(_GRADE_WIDTH))
    for grade, number in printed.items():
        if number > _MOST_LINES:
            say(f"{grade:{_GRADE_WIDTH}}{number - _MOST_LINES} more, which are not printed")
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
