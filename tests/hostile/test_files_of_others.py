"""Files that somebody made to stop, fill or crash whoever verifies them: pipes, devices, endless and huge ones."""

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.hostile.offline import cairn, verified
from tests.unit.cairn.verify.recorded import (
    Chain,
    Federation,
    digest,
    in_base64,
    receipt_of,
    write_database,
    write_lines,
    write_run,
)

FILES = [
    "model.safetensors",
    "release.json",
    "evaluation.json",
    "ledger.jsonl",
    "ledger_head.json",
    "history.jsonl",
    "best.safetensors",
    "best.json",
]
TERABYTE = 1 << 40


@pytest.fixture
def run(tmp_path: Path) -> Path:
    write_run(tmp_path / "run", Federation())
    return tmp_path / "run"


def pipe(path: Path) -> None:
    os.mkfifo(path)


def device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def folder(path: Path) -> None:
    path.mkdir()


def loop(path: Path) -> None:
    path.symlink_to(path.name)


def terabyte(path: Path) -> None:
    """Of zeros that take no room on the disk."""
    with path.open("wb") as file:
        file.truncate(TERABYTE)


def long_line(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(400 << 20)


def messages_of_the_kernel(path: Path) -> None:
    """A regular file that keeps its reader waiting."""
    path.symlink_to("/proc/kmsg")


@pytest.fixture
def a_socket(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "s"
    with closing(socket.socket(socket.AF_UNIX)) as listening:
        listening.bind(str(path))
        yield path


@pytest.mark.parametrize("make", [pipe, terabyte], ids=lambda make: make.__name__)
@pytest.mark.parametrize("name", FILES)
def test_what_is_no_file_in_a_run_is_named_and_not_waited_for(
    run: Path, name: str, make: Callable[[Path], None]
) -> None:
    (run / name).unlink()
    make(run / name)
    ran = verified(run.parent, run)
    assert ran.code == 1
    assert f"FAILED {name}: " in ran.said


@pytest.mark.parametrize(
    "make",
    [device, folder, loop, long_line, messages_of_the_kernel],
    ids=lambda make: make.__name__,
)
def test_whatever_lies_where_the_ledger_should_it_is_named(
    run: Path, make: Callable[[Path], None]
) -> None:
    (run / "ledger.jsonl").unlink()
    make(run / "ledger.jsonl")
    ran = verified(run.parent, run)
    assert ran.code == 1
    assert "FAILED ledger.jsonl: " in ran.said


def test_a_socket_is_named(run: Path, a_socket: Path) -> None:
    (run / "release.json").unlink()
    a_socket.rename(run / "release.json")
    assert "FAILED release.json: it cannot be read" in verified(run.parent, run).said


@pytest.mark.parametrize("make", [pipe, device], ids=lambda make: make.__name__)
def test_a_checkpoint_that_is_no_file_counts_as_completed(
    run: Path, make: Callable[[Path], None]
) -> None:
    (run / "checkpoint.json").unlink()
    make(run / "checkpoint.json")
    assert verified(run.parent, run).code == 0


@pytest.mark.parametrize("name", ["x.jsonl", "x.json", "aggregator.sqlite"])
@pytest.mark.parametrize("make", [pipe, long_line], ids=lambda make: make.__name__)
def test_a_path_that_is_no_file_is_named(
    tmp_path: Path, name: str, make: Callable[[Path], None]
) -> None:
    make(tmp_path / name)
    assert verified(tmp_path, tmp_path / name).code == 1
    if name != "x.json":
        assert cairn(tmp_path, "ledger", tmp_path / name).code == 2


@pytest.mark.parametrize("option", ["--ledger", "--statement", "--config"])
def test_an_option_that_names_a_pipe_is_named(run: Path, option: str) -> None:
    path = run.parent / ("x.jsonl" if option == "--ledger" else "x.json")
    pipe(path)
    if option == "--config":
        assert cairn(run.parent, "verify", run, option, path).code == 2
    elif option == "--ledger":
        assert verified(run.parent, run, option, path).code == 1
    else:
        write_database(run.parent / "owner/owner.sqlite", Chain().rows)
        assert verified(run.parent, run.parent / "owner", option, path).code == 1


@pytest.mark.parametrize(
    "body",
    [
        '{"job":' + "[" * 400_000 + "]" * 400_000 + "}",
        '{"job":' + "[" * 900 + "]" * 900 + "}",
        '{"round":' + "9" * 900_000 + "}",
        '{"unix_ms":' + "9" * 4000 + ',"round":1e999999}',
        '{"job":"\\ud800","manifest_digest":"\\udfff"}',
        '{"cohort":[' + "[]," * 300_000 + "[]]}",
        '{"manifest_digest":NaN,"job":-Infinity}',
        '{"' + "a" * 900_000 + '":0}',
    ],
    ids=lambda body: body[:24],
)
def test_no_json_crashes_or_fills_the_reader(run: Path, body: str) -> None:
    chain = Chain()
    for kind in ("job", "open", "release", "refused") * 10:
        chain.add_body(kind, body.encode())
    write_lines(run / "ledger.jsonl", chain.rows)
    assert verified(run.parent, run).code == 1
    path = run.parent / "aggregator.sqlite"
    write_database(path, chain.rows, chain.rows)
    verified(run.parent, path)
    assert cairn(run.parent, "ledger", path).code in {0, 2}


def test_many_groups_and_many_rounds_are_compared_in_one_pass(tmp_path: Path) -> None:
    chain = Chain()
    groups = [*(["a", f"b{number}"] for number in range(5_000)), ["a", "z"]]
    chain.add("job", job="j", groups=groups)
    for number in range(600):
        chain.add("open", job="j", round=number, manifest_digest="", cohort=["a"] * 15_000 + ["z"])
    write_lines(tmp_path / "ledger.jsonl", chain.rows)
    assert verified(tmp_path, tmp_path / "ledger.jsonl").code == 1


def test_a_receipt_that_is_repeated_is_found_without_reading_everything_again(
    tmp_path: Path,
) -> None:
    chain = Chain()
    manifest = digest("manifest")
    for number in range(15_000):
        chain.add(
            "sent",
            manifest_digest=manifest.hex(),
            payload_digest=digest("alice's update").hex(),
            examples=number + 1000 if number < 14_999 else 120,
            metrics={"loss": 0.25},
        )
    receipt = in_base64(receipt_of("alice", manifest))
    for _ in range(15_000):
        chain.add("receipt", manifest_digest=manifest.hex(), receipt=receipt)
    write_database(tmp_path / "owner.sqlite", chain.rows)
    assert verified(tmp_path, tmp_path).code == 0


def test_a_statement_that_is_repeated_is_looked_up_and_not_searched_for(tmp_path: Path) -> None:
    federation = Federation()
    for _ in range(20_000):
        federation.ledger.add("abort", job="other")
    write_lines(tmp_path / "ledger.jsonl", federation.ledger.rows)
    chain = Chain()
    signed = federation.statements[2]
    for _ in range(3000):
        chain.add("released", counted=False, statement=in_base64(signed))
    write_database(tmp_path / "owner/owner.sqlite", chain.rows)
    ran = verified(tmp_path, tmp_path / "owner", "--ledger", tmp_path / "ledger.jsonl")
    assert ran.code == 1
    assert len(ran.out.splitlines()) < 3100
