"""`cairn doctor`."""

import importlib
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cairn import __version__
from cairn.runtime.timeouts import SHORT_WAIT_SECONDS

if TYPE_CHECKING:
    from cairn.diagnostics.findings import Finding
    from cairn.diagnostics.preflight import NodeChecks

_GRADE_WIDTH = 9
# Who knows what to check of each kind of file.
_EXAMINERS = {
    "a coordinator": "coordinator",
    "an owner": "owner_node",
    "an aggregator": "aggregator_node",
}


@click.command("doctor")
@click.argument(
    "file", metavar="NODE.toml", type=click.Path(exists=True, dir_okay=False, path_type=Path)
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of lines.")
@click.option(
    "--timeout",
    default=SHORT_WAIT_SECONDS,
    show_default=True,
    type=click.FloatRange(min=0, max=600, min_open=True),
    help="Seconds that each step towards a peer may take.",
)
def doctor(*, file: Path, as_json: bool, timeout: float) -> None:
    """Check the node of NODE.toml: its file, certificates, clock and disk, its ports and its peers.

    Prints a line for each thing that was checked: ok, a note, a warning or a fault, with the cause and the
    cure. Runs no task, opens no data, and sends its peers nothing but the question whether they are up.
    Exit codes: 0 no fault, 1 a fault, 2 a mistake in the call.
    """
    # Imported here, so that --help answers at once.
    from cairn.diagnostics.findings import Grade, of_grade
    from cairn.runtime.logging import start_logging
    from cairn.runtime.quoting import say

    start_logging()  # to stderr: stdout is for the findings
    findings = _examined(file, timeout)
    faults = len(of_grade(findings, Grade.FAULT))
    warnings = len(of_grade(findings, Grade.WARNING))
    if as_json:
        values = {
            "file": str(file),
            "software": __version__,
            "faults": faults,
            "warnings": warnings,
        }
        click.echo(
            json.dumps({**values, "findings": [asdict(each) for each in findings]}, indent=2)
        )
    else:
        for finding in findings:
            say(finding.line(_GRADE_WIDTH))
        say(f"{file}: {_count(faults, 'fault')}, {_count(warnings, 'warning')}")
    sys.exit(1 if faults else 0)


def _examined(file: Path, seconds: float) -> list["Finding"]:
    from cairn.diagnostics.doctor import examine
    from cairn.diagnostics.findings import faults_of, ok
    from cairn.errors import UsageError

    try:
        node = _node_of(file)
    except UsageError as error:
        return faults_of("file", error)
    return [ok("file", f"{file} is the file of {node.name}"), *examine(node, seconds)]


def _node_of(file: Path) -> "NodeChecks":
    from cairn.config import kind_of, read_toml
    from cairn.errors import UsageError

    examiner = _EXAMINERS.get(kind_of(read_toml(file)) or "")
    if examiner is None:
        raise UsageError(
            f"{file}: is no node's file: an aggregator's has the key listen_owners, a coordinator's the"
            " key listen and an owner's the key coordinator; give the file that the node starts with"
        )
    # A role's module, which this package does not import: see the table.
    found: NodeChecks = importlib.import_module(f"{examiner}.diagnostics").node_of_file(file)
    return found


def _count(number: int, what: str) -> str:
    return f"{number or 'no'} {what}{'' if number == 1 else 's'}"
