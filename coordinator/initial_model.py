"""Finds the model a job starts from.

A .py file's `model()` is built in a process of its own, so that the coordinator imports no PyTorch.
"""

import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import click

from cairn.errors import UsageError
from cairn.model.safetensors_reader import read_model
from cairn.model.safetensors_writer import write_model
from cairn.model.schema import Schema


def first_model(
    source: Path, seed: int, workspace: Path, *, gradients: bool
) -> tuple[Schema, memoryview]:
    """Read a .safetensors file, or build the model of a task's .py file, by way of `workspace`.

    Either holds the entries that the task exchanges and no others, and in a job of gradients only those that are
    trained; of a file, the owners find that out.
    Raises UsageError where that fails; the traceback of the task's own code goes to stderr.
    """
    if source.suffix != ".py":
        return read_model(source)
    with TemporaryDirectory(dir=workspace, prefix=".first-model-") as directory:
        built = Path(directory) / "model.safetensors"
        command = [
            sys.executable,
            "-m",
            "coordinator.initial_model",
            str(source),
            str(seed),
            str(built),
            *(["gradients"] if gradients else []),
        ]
        if subprocess.run(command, check=False).returncode != 0:
            raise UsageError(f"{source}: its model could not be built; see above for the reason")
        return read_model(built)


def _build(source: str, seed: str, target: str, content: str = "weights") -> int:
    from cairn.errors import CairnError
    from cairn.runtime.quoting import say
    from cairn.tasks.first_model import first_model as build
    from cairn.tasks.loader import TaskFailed, load_task, own_traceback

    try:
        gradients = content == "gradients"
        schema, payload = build(load_task(source), int(seed), gradients=gradients)
    except TaskFailed as failed:
        click.echo(own_traceback(failed), err=True)
        return 1
    except CairnError as error:
        say(f"error: {error}", err=True)
        return 1
    write_model(Path(target), schema, payload)
    return 0


if __name__ == "__main__":
    sys.exit(_build(*sys.argv[1:]))
