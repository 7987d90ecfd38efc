"""The folder of a run, and what a crash leaves in it."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from cairn.errors import UsageError
from cairn.model.safetensors_writer import ModelWriter, write_model
from cairn.model.schema import Schema, TensorSpec
from cairn.protocol.aggregation import Aggregation, aggregation_to_pb
from cairn.v1 import round_pb2 as pb
from coordinator.run_directory import Checkpoint, RunFolder

SCHEMA = Schema.of([TensorSpec("w", "F32", (2,))])
START = Checkpoint(job="tumours", job_digest="ab" * 32)
STATEMENT = pb.Signed(
    type="cairn.v1.ReleaseStatement",
    body=pb.ReleaseStatement(
        job="tumours", round=1, contributors=3, aggregation=aggregation_to_pb(Aggregation())
    ).SerializeToString(),
    signature=b"s" * 64,
)


def values(*numbers: float) -> bytes:
    return torch.tensor(numbers).numpy().tobytes()


def arrived(folder: RunFolder) -> ModelWriter:
    """A model that has arrived whole and is not kept yet."""
    model = folder.new_model(SCHEMA)
    model.write(values(3.0, 4.0))
    return model


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    folder = RunFolder(tmp_path / "run")
    folder.begin(START, SCHEMA, values(1.0, 2.0))
    return folder


def history(folder: RunFolder) -> list[dict[str, object]]:
    lines = (folder.path / "history.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def test_a_new_folder_has_no_checkpoint(tmp_path: Path) -> None:
    assert RunFolder(tmp_path / "new").checkpoint() is None


def test_the_model_is_a_safetensors_file_that_torch_reads(folder: RunFolder) -> None:
    assert torch.equal(load_file(folder.model_path)["w"], torch.tensor([1.0, 2.0]))


def test_a_run_begins_with_a_model_without_zeros_that_have_a_sign(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.begin(START, SCHEMA, values(-0.0, -2.0))
    assert bytes(folder.values(SCHEMA)) == values(0.0, -2.0)


def test_a_run_that_an_earlier_version_began_with_such_zeros_goes_on_without_them(
    tmp_path: Path,
) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.begin(START, SCHEMA, values(1.0, 2.0))
    write_model(folder.model_path, SCHEMA, values(-0.0, 2.0))
    folder.mend_first_model(replace(START, released=1))
    assert bytes(folder.values(SCHEMA)) == values(-0.0, 2.0)  # a release stays as it is
    folder.mend_first_model(START)
    assert bytes(folder.values(SCHEMA)) == values(0.0, 2.0)


def test_a_release_replaces_the_model_and_its_statement(folder: RunFolder) -> None:
    folder.save_release(STATEMENT, arrived(folder))
    assert torch.equal(load_file(folder.model_path)["w"], torch.tensor([3.0, 4.0]))
    assert bytes(folder.values(SCHEMA)) == values(3.0, 4.0)
    release = json.loads((folder.path / "release.json").read_text(encoding="utf-8"))
    assert release["statement"]["contributors"] == 3


def test_a_finished_round_moves_the_checkpoint_behind_its_line(folder: RunFolder) -> None:
    after = replace(START, round=1, released=1)
    folder.finish_round(after, {"round": 1, "contributors": 3, "metrics": {}, "seconds": 0.1})
    assert folder.checkpoint() == after
    assert history(folder) == [{"round": 1, "contributors": 3, "metrics": {}, "seconds": 0.1}]


def test_the_disk_is_told_to_keep_the_history_once_the_line_is_in_its_file(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, kept, sync = folder.path / "history.jsonl", [], os.fsync

    def look(descriptor: int) -> None:
        if os.path.samestat(os.fstat(descriptor), path.stat()):
            kept.append(path.read_text(encoding="utf-8"))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", look)
    folder.finish_round(replace(START, round=1), {"round": 1})
    assert kept == ['{"round": 1}\n']


def test_lines_behind_the_checkpoint_are_dropped_when_the_run_is_taken_up(
    folder: RunFolder,
) -> None:
    for number in (1, 2):
        folder.finish_round(replace(START, round=number), {"round": number})
    with (folder.path / "history.jsonl").open("a", encoding="utf-8") as torn:
        torn.write('{"round": 3, "contrib')
    folder.prune_history(last_round=1)
    assert history(folder) == [{"round": 1}]


def test_a_second_coordinator_is_refused_the_same_folder(folder: RunFolder) -> None:
    with pytest.raises(UsageError, match="in use by another coordinator"):
        RunFolder(folder.path)


def test_a_damaged_checkpoint_is_named(folder: RunFolder) -> None:
    (folder.path / "checkpoint.json").write_text("{", encoding="utf-8")
    with pytest.raises(UsageError, match=r"checkpoint\.json"):
        folder.checkpoint()


def test_a_checkpoint_of_a_version_that_knew_of_no_failing_owners_is_read(
    folder: RunFolder,
) -> None:
    written = {"job": "tumours", "job_digest": "ab" * 32, "round": 7, "released": 6}
    path = folder.path / "checkpoint.json"
    path.write_text(json.dumps({**written, "completed": False}), encoding="utf-8")
    assert folder.checkpoint() == replace(START, round=7, released=6)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("failing", {"alice": 3}),
        ("failing", {"alice": [3, 2]}),
        ("failing", {"alice": ["often", 2, 9]}),
        ("failing", ["alice"]),
        ("failing", None),
        ("round", "last"),
        ("rounds", 4),
        ("best", {"metric": "f1"}),
        ("best", {"metric": "f1", "better": "most", "round": 1, "value": 0.5, "mark": 0.5}),
        ("best", 3),
    ],
    ids=str,
)
def test_a_value_in_the_checkpoint_that_cannot_be_one_is_named(
    folder: RunFolder, key: str, value: object
) -> None:
    path = folder.path / "checkpoint.json"
    written = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(written | {key: value}), encoding="utf-8")
    with pytest.raises(UsageError, match=rf"checkpoint\.json cannot be read \({key}") as caught:
        folder.checkpoint()
    assert "\n" not in str(caught.value)


def test_a_full_disk_leaves_the_last_release_whole(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        folder.save_release(STATEMENT, arrived(folder))
    assert torch.equal(load_file(folder.model_path)["w"], torch.tensor([1.0, 2.0]))
    assert folder.checkpoint() == START
