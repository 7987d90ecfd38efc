"""The training process seen from inside: it answers every piece of work, whatever the task does."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cairn.model.schema import Schema, TensorSpec
from cairn.tasks.task import Site
from cairn.v1 import round_pb2 as pb
from owner_node.training.ipc import ModelMemory
from owner_node.training.worker import Memories, Training

SCHEMA = Schema.of([TensorSpec("weight", "F32", (1, 1)), TensorSpec("bias", "F32", (1,))])
ORDER: dict[str, Any] = {
    "gradients": False,
    "statistics": None,
    "job": "j",
    "round": 2,
    "phase": "train",
    "settings": {},
    "in_place": False,
    "begins_with_kept": None,
    "private": None,
}
TASK = """
import cairn
from torch import nn

def model(): return nn.Linear(1, 1)
def data(site): return cairn.Data(train=None, examples=6)
def train(model, data, round): {train}
task = cairn.Task(model=model, data=data, train=train)
"""


@pytest.fixture(autouse=True)
def _a_path_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", sys.path.copy())


def training(path: Path, train: str, min_examples: int = 1) -> Training:
    path.write_text(TASK.format(train=train))
    return Training(str(path), Site("bob", path.parent), min_examples)


def test_it_answers_with_examples_and_metrics(tmp_path: Path) -> None:
    memory = ModelMemory.create(SCHEMA)
    answer = training(tmp_path / "good_task.py", "return {'loss': 0.5}").answer(
        Memories(memory), ORDER
    )
    memory.close()
    assert answer == {"examples": 6, "metrics": {"loss": 0.5}}


def test_it_answers_a_failure_with_a_reason_and_the_console_gets_the_traceback(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    memory = ModelMemory.create(SCHEMA)
    answer = training(tmp_path / "bad_task.py", "raise ValueError('patient 7')").answer(
        Memories(memory), ORDER
    )
    memory.close()
    assert answer == {
        "reason": pb.REASON_TASK_FAILED,
        "text": "the task's train raised ValueError",
    }
    console = capfd.readouterr().err
    assert "bad_task.py" in console
    assert "patient 7" in console


def test_in_a_job_of_gradients_the_gradient_is_what_it_leaves(tmp_path: Path) -> None:
    text = TASK.format(train="(3 * model(torch.ones(1, 1))).sum().backward()")
    text = text.replace("train=train", "gradients=train").replace(
        "import cairn", "import cairn, torch"
    )
    (tmp_path / "gradients_task.py").write_text(text)
    process = Training(str(tmp_path / "gradients_task.py"), Site("bob", tmp_path))
    told = process.model()
    assert (told["trained"], told["gives_weights"], told["gives_gradients"]) == (
        ["bias", "weight"],
        False,
        True,
    )
    memory = ModelMemory.create(SCHEMA)
    answer = process.answer(Memories(memory), ORDER | {"gradients": True, "in_place": True})
    left = bytes(memory.base)
    memory.close()
    assert answer == {"examples": 6, "metrics": {}}
    assert left == np.array([3, 3], np.float32).tobytes()


def test_a_task_that_cannot_be_loaded_is_shown_at_once_and_answered_later(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    broken = training(tmp_path / "broken_task.py", "pass")
    (tmp_path / "broken_task.py").write_text("1 / 0")
    assert broken.model()["reason"] == pb.REASON_TASK_FAILED
    assert "ZeroDivisionError" in capfd.readouterr().err
    memory = ModelMemory.create(SCHEMA)
    answer = broken.answer(Memories(memory), ORDER)
    memory.close()
    assert answer["text"] == "the task's file raised ZeroDivisionError"


def test_a_missing_task_file_is_answered_with_its_name(tmp_path: Path) -> None:
    memory = ModelMemory.create(SCHEMA)
    absent = Training(str(tmp_path / "absent.py"), Site("bob", tmp_path))
    answer = absent.answer(Memories(memory), ORDER)
    memory.close()
    assert answer["reason"] == pb.REASON_TASK_FAILED
    assert "absent.py" in answer["text"]


@pytest.mark.parametrize(("least", "trains"), [(6, True), (7, False)])
def test_it_does_not_train_on_fewer_examples_than_the_owner_allows(
    tmp_path: Path,
    least: int,
    trains: bool,  # noqa: FBT001 - a parameter of the test
) -> None:
    memory = ModelMemory.create(SCHEMA)
    trained = tmp_path / "trained"
    train = f"open({str(trained)!r}, 'w').close()"
    answer = training(tmp_path / f"task_{least}.py", train, least).answer(Memories(memory), ORDER)
    memory.close()
    assert trained.exists() is trains
    assert answer.get("reason") == (None if trains else pb.REASON_TOO_FEW_EXAMPLES)


def test_a_model_of_empty_tensors_is_no_matter(tmp_path: Path) -> None:
    memory = ModelMemory.create(Schema.of([TensorSpec("weight", "F32", (0, 3))]))
    text = TASK.format(train="pass").replace(
        "nn.Linear(1, 1)", "nn.ParameterDict({'weight': nn.Parameter(torch.empty(0, 3))})"
    )
    (tmp_path / "empty_task.py").write_text("import torch\n" + text)
    empty = Training(str(tmp_path / "empty_task.py"), Site("bob", tmp_path))
    assert empty.answer(Memories(memory), ORDER | {"in_place": True})["examples"] == 6
    memory.close()
