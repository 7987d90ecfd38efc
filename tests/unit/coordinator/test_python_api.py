"""What a person is told who describes a job in Python, and what a notebook shows. No network."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog
import torch
from torch import nn

import cairn
from cairn.errors import CairnError, UsageError
from cairn.provisioning.create import FederationPlan, write_federation
from cairn.v1 import round_pb2 as pb
from coordinator.api.federation import Federation, connect
from coordinator.api.given_model import GivenModel
from coordinator.api.live_view import Progress, as_html
from coordinator.api.local_federation import sandbox
from coordinator.events import JobFinished, OwnerNotCounted, RoundFinished


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    folder = tmp_path_factory.mktemp("federation") / "fed"
    write_federation(folder, FederationPlan("clinics", ("alice", "bob", "carol", "dan"), floor=3))
    yield connect(folder / "coordinator.toml")
    structlog.reset_defaults()


def test_to_connect_changes_nothing_that_other_processes_inherit(federation: Federation) -> None:
    assert federation.owners
    assert "CAIRN_LOG_LEVEL" not in os.environ


def test_the_public_names_are_those_of_the_package() -> None:
    assert cairn.connect is connect
    with pytest.raises(AttributeError, match="conect"):
        _ = cairn.conect  # type: ignore[attr-defined]  # misspelt


def test_a_job_invites_the_owners_of_the_coordinators_file_and_at_least_three(
    federation: Federation,
) -> None:
    assert federation.owners == ("alice", "bob", "carol", "dan")
    job = federation.job("ward", model={"w": torch.zeros(2)}, rounds=3)
    assert (job.settings.owners, job.settings.floor) == (["alice", "bob", "carol", "dan"], 3)
    assert (job.settings.task, job.folder) == ("ward", Path("runs/ward"))
    two = federation.job("ward", model={"w": torch.zeros(2)}, rounds=3, owners=["bob", "dan"])
    assert two.settings.floor == 2


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        ({"evaluat": True}, "the job ward: unknown key evaluat; did you mean evaluate?"),
        (
            {"rule": {"name": "meen"}},
            "the job ward: rule.name = 'meen': must be .*did you mean mean?",
        ),
        ({"floor": 9}, "the job ward: floor = 9 is more than the 4 owners"),
    ],
)
def test_a_mistake_in_a_job_is_the_sentence_of_its_file(
    federation: Federation, keys: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(UsageError, match=sentence.replace("?", r"\?")):
        federation.job("ward", model={"w": torch.zeros(2)}, rounds=3, **keys)


def test_a_job_of_a_task_that_no_owner_of_the_sandbox_has_is_refused_with_the_one_they_have(
    federation: Federation,
) -> None:
    local = Federation(federation._settings, task="ward")
    assert local.job("ward", model={"w": torch.zeros(2)}, rounds=1).settings.task == "ward"
    with pytest.raises(UsageError, match=r'job first: task = "first", .* write task="ward"'):
        local.job("first", model={"w": torch.zeros(2)}, rounds=1)


@pytest.mark.parametrize(
    ("code", "keys", "sentence"),
    [
        ("def train(model:\n", {}, r"task\.py, line 1: '\(' was never closed"),
        (None, {}, r"task\.py: No such file or directory"),
        ("", {"settings": {"lr": 0.1}}, r"the task task: settings\.lr = 0\.1: should be a list"),
        ("", {"metrics": "loss"}, r"the task task: metrics = 'loss': "),
    ],
    ids=["syntax", "no file", "no range", "no list"],
)
def test_a_mistake_in_a_sandbox_is_one_sentence_before_anything_starts(
    tmp_path: Path, code: str | None, keys: dict[str, Any], sentence: str
) -> None:
    (tmp_path / "rows.csv").touch()
    if code is not None:
        (tmp_path / "task.py").write_text(code, encoding="utf-8")
    with pytest.raises(UsageError, match=sentence):
        sandbox(tmp_path / "task.py", [tmp_path / "rows.csv"] * 2, folder=tmp_path / "fed", **keys)
    assert not (tmp_path / "fed" / "logs").exists()


def test_a_model_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"should be a torch.nn.Module, .* and is int"):
        GivenModel(3, tmp_path).write()  # type: ignore[arg-type]  # the mistake


def test_a_model_whose_file_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"model: there is no such file .*task\.py"):
        GivenModel(tmp_path / "task.py", tmp_path).write()


def test_a_job_that_has_not_begun_has_nothing_to_verify(federation: Federation) -> None:
    job = federation.job("never", model={"w": torch.zeros(2)}, rounds=3)
    with pytest.raises(UsageError, match="the job never has not begun"):
        job.verify()


def test_the_released_values_go_into_a_copy_and_what_was_not_exchanged_stays(
    tmp_path: Path,
) -> None:
    given = nn.Linear(2, 1)
    model = GivenModel(given, tmp_path).with_values({"bias": torch.tensor([7.0])})
    assert torch.equal(model.state_dict()["weight"], given.weight)
    assert model.state_dict()["bias"].item() == 7.0
    assert given.bias.item() != 7.0


def test_tensors_alone_make_no_module(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"take job\.state"):
        GivenModel({"w": torch.zeros(2)}, tmp_path).with_values({})


@pytest.mark.parametrize(
    ("owner", "folder", "sentence"),
    [("alice", ".", "is not empty"), ("../../data/alice", "new", "data/alice")],
)
def test_a_sandbox_overwrites_nothing(
    tmp_path: Path, owner: str, folder: str, sentence: str
) -> None:
    """Its files are called as those of a task are: data/alice.csv and tasks.toml."""
    there = {name: tmp_path / name for name in ("task.py", "tasks.toml", "data/alice.csv", "b.csv")}
    (tmp_path / "data").mkdir()
    for name, path in there.items():
        path.write_text(f"mine: {name}")
    places = {owner: there["data/alice.csv"], "bob": there["b.csv"]}
    with pytest.raises(CairnError, match=sentence):
        cairn.sandbox(there["task.py"], places, folder=tmp_path / folder)
    assert all(path.read_text() == f"mine: {name}" for name, path in there.items())


def a_round(number: int, loss: float) -> RoundFinished:
    return RoundFinished(
        release=number,
        releases=4,
        round=number,
        contributors=3,
        group=None,
        metrics={"<loss>": loss},
        seconds=2.0,
    )


def test_the_view_shows_progress_curves_and_notes_and_escapes_every_name() -> None:
    progress = Progress("<job>")
    for number, loss in [(1, 0.5), (2, 0.25)]:
        progress.note(a_round(number, loss))
    progress.note(OwnerNotCounted(2, "bob", pb.REASON_DEADLINE))
    shown = as_html(progress)
    assert "round 2 of 4" in shown
    assert "about 4 s left" in shown
    assert "bob was not counted (DEADLINE)" in shown
    assert "&lt;loss&gt; <strong>0.25" in shown
    assert "<loss>" not in shown
    assert "<job>" not in shown
    assert "<script" not in shown
    progress.note(JobFinished(Path("model.safetensors"), b"\0"))
    assert "finished" in as_html(progress)


def test_a_job_of_statistics_needs_no_model_and_no_rounds(federation: Federation) -> None:
    age = {"low": 0, "high": 100, "bins": 10}
    job = federation.job("ages", task="ward", statistics={"columns": {"age": age}})
    assert job.settings.statistics is not None
    assert (job.settings.model, job.settings.rounds) == (None, 1)
    with pytest.raises(UsageError, match="has counted nothing"):
        _ = job.statistics


def test_a_training_without_a_model_is_told_what_is_missing(federation: Federation) -> None:
    with pytest.raises(UsageError, match=r"the job ward: .*model"):
        federation.job("ward", rounds=3)
