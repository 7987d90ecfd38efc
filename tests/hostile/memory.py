"""Finds byte strings in what a process holds: in its memory, its core dump, its files and folders."""

import shutil
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

_Piece = tuple[int, str, bytes]  # where it begins, what it is of, and its bytes

_READ_BYTES = 1 << 20
_UNREADABLE = ("[vvar", "[vsyscall]")  # pages of the kernel, the same in every process


def may_read(pid: int) -> bool:
    """Whether this account may look at the memory of a process that it has started itself."""
    try:
        return any(True for _ in _pieces(pid))
    except PermissionError:
        return False


def in_memory(pid: int, needles: Mapping[str, bytes]) -> dict[str, str]:
    """The needles that are anywhere in the memory of a process, and what it maps there."""
    return _found(_pieces(pid), needles)


def in_core_dump(pid: int, folder: Path, needles: Mapping[str, bytes]) -> dict[str, str]:
    """The needles that are in a core dump of a process; where gdb is not installed, in its memory."""
    gcore = shutil.which("gcore")
    if gcore is None:
        return in_memory(pid, needles)
    command = [gcore, "-o", str(folder / "core"), str(pid)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    path = folder / f"core.{pid}"
    assert path.exists(), f"gcore wrote no core dump: {done.stdout}{done.stderr}"
    try:
        return in_files([path], needles)
    finally:
        path.unlink()


def in_files(paths: Iterable[Path], needles: Mapping[str, bytes]) -> dict[str, str]:
    """The needles that are in any of these files, or in a file below any of these folders."""
    found: dict[str, str] = {}
    for path in _files(paths):
        found |= _found(_pieces_of(path), needles)
    return found


def files_held(pid: int) -> list[Path]:
    """The files that a process has open or mapped and that were changed while it ran."""
    lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    mapped = [Path(line[line.index("/") :]) for line in lines if "/" in line]
    opened = [fd.readlink() for fd in Path(f"/proc/{pid}/fd").iterdir()]
    started = Path(f"/proc/{pid}").stat().st_mtime
    held = {path for path in mapped + opened if path.is_file()}
    return sorted(path for path in held if path.stat().st_mtime >= started)


def _found(pieces: Iterable[_Piece], needles: Mapping[str, bytes]) -> dict[str, str]:
    """The needles in a run of pieces, also across the end of one and the beginning of the next."""
    overlap = max(map(len, needles.values())) - 1
    found: dict[str, str] = {}
    before, expected = b"", 0
    for start, name, piece in pieces:
        if piece == bytes(len(piece)):
            continue  # nearly all that is mapped was never used, and no needle is all zeros
        text = before + piece if start == expected else piece
        found |= {
            needle: name
            for needle, value in needles.items()
            if needle not in found and value in text
        }
        before, expected = text[-overlap:], start + len(piece)
    return found


def _files(paths: Iterable[Path]) -> Iterator[Path]:
    for path in paths:
        if path.is_dir():
            yield from (below for below in path.rglob("*") if below.is_file())
        elif path.is_file():
            yield path


def _pieces_of(path: Path) -> Iterator[_Piece]:
    with path.open("rb") as file:
        while piece := file.read(_READ_BYTES):
            yield file.tell() - len(piece), str(path), piece


def _pieces(pid: int) -> Iterator[_Piece]:
    """The readable memory, from the lowest address up: address, what is mapped there, bytes."""
    maps = Path(f"/proc/{pid}/maps").read_text().splitlines()
    with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
        for line in maps:
            span, access, *_rest = line.split(maxsplit=5)
            name = _rest[-1] if len(_rest) == 4 else "anonymous"
            begin, end = (int(part, 16) for part in span.split("-"))
            if not access.startswith("r") or name.startswith(_UNREADABLE):
                continue
            if name.startswith("/") and "w" not in access:
                continue  # the code of a library: what the file holds, and nothing from this run
            for start in range(begin, end, _READ_BYTES):
                memory.seek(start)
                try:
                    piece = memory.read(min(_READ_BYTES, end - start))
                except OSError:  # unmapped since the list was read, or beyond the end of its file
                    break
                yield start, name, piece
