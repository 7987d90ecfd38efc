"""What a person is told of a directory that cannot be written to: the cause, and its own cure."""

import errno
import os
from pathlib import Path

import pytest

from cairn.errors import UsageError
from cairn.storage.directory import run_folder, state_directory

STATE = state_directory(Path("/srv/state"))


@pytest.mark.parametrize(
    ("number", "cure"),
    [
        (errno.ENOSPC, "free space there"),
        (errno.EDQUOT, "free space there, or have this account's quota raised"),
        (errno.EROFS, "have its file system mounted for writing"),
        (errno.EACCES, "let this account write there"),
        (errno.ENOTDIR, "remove the file that is in a directory's place"),
        (errno.EIO, "see to the disk"),
    ],
    ids=errno.errorcode.get,
)
def test_an_error_of_the_file_system_is_told_with_its_own_cure(number: int, cure: str) -> None:
    text = str(STATE.unusable(OSError(number, os.strerror(number), "/srv/state/lock")))
    assert text.startswith("the state directory /srv/state cannot be used: ")
    assert os.strerror(number) in text
    assert text.endswith(f"; {cure}, or name another directory as `state` in this node's file")


def test_a_runs_folder_is_chosen_on_the_command_line() -> None:
    text = str(run_folder(Path("runs/a")).unusable(OSError(errno.ENOSPC, "No space left")))
    assert text.startswith("the run's folder runs/a cannot be used: ")
    assert text.endswith("; free space there, or choose another --out")


def test_less_than_a_gibibyte_is_scarce() -> None:
    assert STATE.scarcity(1 << 30) == ""
    assert "has 1023 MiB left, and should have 1024" in STATE.scarcity((1 << 30) - 1)


def test_what_was_tried_is_left_behind_nowhere(tmp_path: Path) -> None:
    assert state_directory(tmp_path).check_writing()
    assert not state_directory(tmp_path / "a/b").check_writing()
    assert list(tmp_path.iterdir()) == []


def test_a_file_on_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a file")
    with pytest.raises(UsageError, match=f"Not a directory: '{tmp_path}/a'"):
        state_directory(tmp_path / "a/b").check_writing()
