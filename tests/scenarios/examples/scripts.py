"""Runs an example's script as its command does, in this process, which has imported its libraries."""

import contextlib
import io
import runpy
import sys
from pathlib import Path
from unittest.mock import patch


def run_script(script: Path, *arguments: str | Path) -> str:
    """Run it to its end; returns what it prints."""
    printed = io.StringIO()
    command = [str(script), *map(str, arguments)]
    with patch.object(sys, "argv", command), contextlib.redirect_stdout(printed):
        runpy.run_path(str(script), run_name="__main__")
    return printed.getvalue()
