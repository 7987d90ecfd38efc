"""Files that somebody put in a run's folder or in a certificate's place, to keep or fill whoever starts from them."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from cairn.errors import UsageError
from cairn.identity.pem import load_certificate, load_certificates, load_key
from coordinator.ledger_mirror import LedgerMirror
from coordinator.run_directory import RunFolder


def pipe(path: Path) -> None:
    os.mkfifo(path)


def device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def loop(path: Path) -> None:
    path.symlink_to(path.name)


def terabyte(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(1 << 40)


def read_checkpoint(folder: Path) -> None:
    RunFolder(folder).checkpoint()


def prune_history(folder: Path) -> None:
    RunFolder(folder).prune_history(1)


def read_ledger(folder: Path) -> None:
    LedgerMirror(folder, "clinics")


@pytest.mark.parametrize("make", [pipe, device, loop, terabyte], ids=lambda make: make.__name__)
@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("checkpoint.json", read_checkpoint),
        ("history.jsonl", prune_history),
        ("ledger.jsonl", read_ledger),
        ("ledger_head.json", read_ledger),
    ],
)
def test_a_run_that_is_taken_up_names_what_is_no_file(
    tmp_path: Path, name: str, read: Callable[[Path], None], make: Callable[[Path], None]
) -> None:
    make(tmp_path / name)
    with pytest.raises(UsageError, match=name):
        read(tmp_path)


@pytest.mark.parametrize("make", [pipe, device, loop, terabyte], ids=lambda make: make.__name__)
@pytest.mark.parametrize("load", [load_certificate, load_certificates, load_key])
def test_a_certificate_or_a_key_that_is_no_file_is_named(
    tmp_path: Path, load: Callable[[Path], object], make: Callable[[Path], None]
) -> None:
    make(tmp_path / "node.crt")
    with pytest.raises(UsageError, match=r"node\.crt cannot be read"):
        load(tmp_path / "node.crt")


@pytest.mark.parametrize("bad", [b"\xff\xfe", b"[" * 100_000, b'{"round": "x"}'], ids=len)
def test_a_history_ends_where_it_is_none(tmp_path: Path, bad: bytes) -> None:
    good = b'{"round": 1}\n'
    (tmp_path / "history.jsonl").write_bytes(good + bad + b"\n" + good)
    RunFolder(tmp_path).prune_history(1)
    assert (tmp_path / "history.jsonl").read_bytes() == good
