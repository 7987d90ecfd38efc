"""Finds an owner's task: from a file, or from an installed package. Imports no torch itself.

Also where the task's own code ends and ours begins: whatever the task's code raises becomes a
`TaskFailed`, and the traceback that its author gets to see begins at its first own line.
"""

import hashlib
import importlib
import importlib.util
import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

from cairn.errors import CairnError, UsageError
from cairn.tasks.task import Task
from cairn.v1 import round_pb2 as pb

_OURS = Path(__file__).parent


class TaskFailed(CairnError):
    """The task did not do its part of a round. The text is for the owner only, the reason for all.

    Where the task's own code raised, `__cause__` is what it raised.
    """

    def __init__(self, message: str, reason: "pb.Reason" = pb.REASON_TASK_FAILED) -> None:
        super().__init__(message)
        self.reason = reason


@contextmanager
def task_code(part: str) -> Iterator[None]:
    """Run a part of the task's own code: whatever it raises becomes TaskFailed.

    A TaskFailed passes: it is what our own code says inside, such as that the budget of `cairn.private` is spent.
    """
    try:
        yield
    except TaskFailed:
        raise
    except (Exception, SystemExit) as error:
        raise TaskFailed(f"the task's {part} raised {type(error).__name__}") from error


def own_traceback(failed: TaskFailed) -> str:
    """The traceback from the task's first own line on; empty where its code did not raise."""
    error = failed.__cause__
    if error is None:
        return ""
    trace = error.__traceback__
    while trace is not None and _is_ours(trace.tb_frame.f_code.co_filename):
        trace = trace.tb_next
    return "".join(traceback.format_exception(type(error), error, trace))


def load_task(source: str) -> Task:
    """Load the task of a file ("path/to/task.py") or of a package ("package.module:attribute").

    Raises UsageError where there is no such task, and TaskFailed where its module raises.
    """
    if source.endswith(".py"):
        module, attribute = _module_of_file(Path(source)), "task"
    else:
        name, attribute = _split(source)
        module = _module_of_package(source, name)
    task = getattr(module, attribute, None)
    if task is None:
        raise UsageError(
            f"{source} has no {attribute!r}; end it with"
            f" {attribute} = cairn.Task(model=model, data=data, train=train)"
        )
    if not isinstance(task, Task):
        raise UsageError(
            f"{attribute!r} in {source} is of type {type(task).__name__}, expected cairn.Task(...)"
        )
    if task.train is None and task.gradients is None:
        raise UsageError(
            f"{attribute!r} in {source} has neither a train nor a gradients function; pass one:"
            " cairn.Task(..., train=train)"
        )
    return task


def find_task(source: str) -> None:
    """Look whether the file or the module of a task is there, and run none of its code.

    Raises UsageError where `load_task` would not find it.
    """
    if source.endswith(".py"):
        _check_file(Path(source))
        return
    name, _ = _split(source)
    path = None
    for end in range(1, name.count(".") + 2):
        part = ".".join(name.split(".")[:end])
        spec = _spec(part, path)
        if spec is None:
            raise _no_module(source, part)
        path = spec.submodule_search_locations or []


def is_installed(package: str) -> bool:
    """Whether there is a package of this name. Imports none."""
    return _spec(package, None) is not None


def _spec(name: str, path: Sequence[str] | None) -> ModuleSpec | None:
    """Where a module is. Unlike importlib's own way, it imports no package that the module is in."""
    for finder in sys.meta_path:
        spec = finder.find_spec(name, path)
        if spec is not None:
            return spec
    return None


def _split(source: str) -> tuple[str, str]:
    name, _, attribute = source.partition(":")
    if not name or not attribute:
        raise UsageError(
            f"{source!r} names no task: expected a file that ends in .py,"
            ' or "package.module:attribute"'
        )
    return name, attribute


def _no_module(source: str, missing: str | None) -> UsageError:
    return UsageError(
        f"{source}: there is no module {missing}; install its package in this"
        " environment, or name a file that ends in .py"
    )


def _check_file(path: Path) -> None:
    try:
        there = path.is_file()
    except OSError:  # a name that is too long, or a directory that may not be looked into
        there = False
    if not there:
        raise UsageError(f"there is no task file {path}; expected the path of an existing .py file")
    if not os.access(path, os.R_OK):
        raise UsageError(f"the task file {path} may not be read; let this account read it")


def _module_of_package(source: str, name: str) -> ModuleType:
    try:
        with task_code("module"):
            return importlib.import_module(name)
    except TaskFailed as failed:
        missing = failed.__cause__
        # Only where the package itself is missing, not something that it imports.
        if isinstance(missing, ModuleNotFoundError) and f"{name}.".startswith(f"{missing.name}."):
            raise _no_module(source, missing.name) from missing
        raise


def _module_of_file(path: Path) -> ModuleType:
    _check_file(path)
    path = path.resolve()
    # The plain name lets worker processes that unpickle the task's classes import them again; a
    # second file of that name in one process gets a name that no other module has.
    name = path.stem
    if name in sys.modules:
        name = f"{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise UsageError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        with task_code("file"):
            spec.loader.exec_module(module)
    except TaskFailed:
        del sys.modules[name]
        raise
    return module


def _is_ours(filename: str) -> bool:
    return Path(filename).parent == _OURS or filename.startswith(
        ("<frozen importlib", importlib.__file__)
    )
