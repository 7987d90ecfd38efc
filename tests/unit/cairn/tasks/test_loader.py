"""Finding a task, and telling its author what is wrong with it."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cairn.errors import UsageError
from cairn.tasks.loader import TaskFailed, load_task, own_traceback, task_code
from cairn.tasks.task import Task

GOOD = """
import cairn
def model(): return {answer}
task = cairn.Task(model=model, data=None, train=print)
"""


@pytest.fixture(autouse=True)
def modules_as_they_were(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(sys, "path", sys.path.copy())
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        del sys.modules[name]


def written(path: Path, text: str) -> str:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    return str(path)


def test_a_file_is_loaded_and_may_import_its_neighbours(tmp_path: Path) -> None:
    written(tmp_path / "neighbour_of_the_task.py", "NUMBER = 7")
    source = written(
        tmp_path / "task.py",
        "from neighbour_of_the_task import NUMBER" + GOOD.format(answer="NUMBER"),
    )
    assert load_task(source).model() == 7  # type: ignore[comparison-overlap]  # no real model


def test_a_task_that_can_neither_train_nor_give_gradients_is_refused(tmp_path: Path) -> None:
    text = GOOD.format(answer=7).replace(", train=print", "")
    with pytest.raises(UsageError, match="has neither a train nor a gradients function"):
        load_task(written(tmp_path / "task.py", text))


@pytest.mark.parametrize("function", ["train", "gradients"])
def test_a_task_may_have_either_function_alone(tmp_path: Path, function: str) -> None:
    text = GOOD.format(answer=7).replace("train=", f"{function}=")
    assert getattr(load_task(written(tmp_path / "task.py", text)), function) is print


def test_two_files_of_one_name_are_two_tasks(tmp_path: Path) -> None:
    one = load_task(written(tmp_path / "one" / "task.py", GOOD.format(answer=1)))
    two = load_task(written(tmp_path / "two" / "task.py", GOOD.format(answer=2)))
    assert (one.model(), two.model()) == (1, 2)  # type: ignore[comparison-overlap]  # no real model


def test_a_package_is_loaded_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(tmp_path / "ward_tasks" / "__init__.py", "")
    written(tmp_path / "ward_tasks" / "heart.py", GOOD.format(answer=1).replace("task =", "mine ="))
    monkeypatch.syspath_prepend(str(tmp_path))
    assert isinstance(load_task("ward_tasks.heart:mine"), Task)


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ("absent.py", "there is no task file absent.py"),
        ("nothing", "names no task"),
        ("no_such_package.tasks:task", "there is no module no_such_package"),
        ("json.no_such_part:task", "there is no module json.no_such_part"),
        ("json:task", "json:task has no 'task'"),
        ("json:dumps", "is of type function, expected cairn.Task"),
    ],
)
def test_a_task_that_is_not_there_is_explained(source: str, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        load_task(source)


def test_a_module_that_raises_shows_its_own_lines_only(tmp_path: Path) -> None:
    source = written(tmp_path / "task.py", "def broken():\n    1 / 0\nbroken()\n")
    with pytest.raises(TaskFailed, match="ZeroDivisionError") as caught:
        load_task(source)
    lines = own_traceback(caught.value).splitlines()
    assert lines[1] == f'  File "{tmp_path / "task.py"}", line 3, in <module>'
    assert "importlib" not in "".join(lines)
    assert "cairn/" not in "".join(lines)


def test_a_missing_import_of_the_task_is_the_tasks_own_failure(tmp_path: Path) -> None:
    with pytest.raises(TaskFailed, match="ModuleNotFoundError"):
        load_task(written(tmp_path / "task.py", "import no_such_module_anywhere"))


def test_a_file_that_failed_can_be_mended_and_loaded_again(tmp_path: Path) -> None:
    source = written(tmp_path / "task.py", "1 / 0")
    with pytest.raises(TaskFailed):
        load_task(source)
    written(tmp_path / "task.py", GOOD.format(answer=1) + "# mended")
    assert isinstance(load_task(source), Task)


def test_code_that_leaves_the_process_has_failed() -> None:
    with pytest.raises(TaskFailed, match="SystemExit"), task_code("train"):
        sys.exit(3)


def test_the_text_for_others_has_no_word_of_what_the_task_said() -> None:
    with pytest.raises(TaskFailed) as caught, task_code("train"):
        raise ValueError("patient 7")
    assert "patient" not in str(caught.value)
    assert "patient 7" in own_traceback(caught.value)


def test_loading_a_task_imports_no_torch_and_no_grpc() -> None:
    script = "import sys, cairn.tasks.loader; print({'torch', 'grpc'} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout == "set()\n"
