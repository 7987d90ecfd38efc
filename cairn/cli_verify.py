"""`cairn verify` and `cairn ledger`."""

import sys
from pathlib import Path

import click

from cairn.cli_identity import mistakes_explained

_path = click.Path(path_type=Path)


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

    Prints a line for each thing that was checked. Exit codes: 0 everything is as it was signed and
    recorded, 1 something is not (the line names the entry and the reason), 2 a mistake in the call.
    """
    from cairn.verify_files import Against
    from cairn.verify_files import verify as check
    from cairn.verify_key import pinned_key

    findings = check(path, Against(pinned_key(key, config), ledger, statements))
    for finding in findings:
        click.echo(str(finding))
    sys.exit(0 if all(finding.good for finding in findings) else 1)


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
    from cairn.ledger_lines import lines_for_people

    for line in lines_for_people(path, full=full, refusals=refusals):
        click.echo(line)
