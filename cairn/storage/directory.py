"""Checks that a directory which a node writes to is its own, is writable and has space."""

import errno
import os
from dataclasses import dataclass
from pathlib import Path

from cairn.errors import UsageError
from cairn.storage.files import write_atomically

AGGREGATOR_DATABASE = "aggregator.sqlite"
OWNER_DATABASE = "owner.sqlite"
_ENOUGH_BYTES = 1 << 30
_TRIED_BYTES = 1 << 16
_CURES = {
    errno.ENOSPC: "free space there",
    errno.EDQUOT: "free space there, or have this account's quota raised",
    errno.EROFS: "have its file system mounted for writing",
    errno.EACCES: "let this account write there",
    errno.EPERM: "let this account write there",
    errno.ENOTDIR: "remove the file that is in a directory's place",
    errno.EEXIST: "remove the file that is in a directory's place",
}


# What a node makes in its state directory, whichever it is.
_DATABASES = (AGGREGATOR_DATABASE, OWNER_DATABASE)
_OF_STATE = (
    "lock",
    "releases",
    "updates",
    "kept",
    *(f"{name}{suffix}" for name in _DATABASES for suffix in ("", "-wal", "-shm", "-journal")),
)


@dataclass(frozen=True)
class WritableDirectory:
    """`name` is what a sentence calls it, and `elsewhere` how a person chooses another.

    `own` are the names of the files and folders that the node makes there, which it then relies on.
    """

    path: Path
    name: str
    elsewhere: str
    own: tuple[str, ...] = ()

    def unusable(self, error: Exception) -> UsageError:
        """The sentence for an error of the file system, or of the database in it."""
        cure = "put a good copy of it back"
        if isinstance(error, OSError):
            cure = _CURES.get(error.errno or 0, "see to the disk")
        elif str(error) == "database is locked":
            cure = "end the program that has it open"
        return UsageError(
            f"{self.name} {self.path} cannot be used: {error}; {cure}, or {self.elsewhere}"
        )

    @property
    def is_relied_on(self) -> bool:
        """Whether the node would act on what another account has put there."""
        return bool(self.own)

    def check_writing(self) -> bool:
        """Write, sync and rename a file there; or above it, where it has yet to be made.

        Returns whether it is there. Raises UsageError where that fails.
        """
        try:
            directory = self.nearest()
            file = directory / f".cairn-check-{os.getpid()}"
            try:
                write_atomically(file, [bytes(_TRIED_BYTES)])
            finally:
                file.unlink(missing_ok=True)
        except OSError as error:
            raise self.unusable(error) from None
        return directory == self.path

    def check_links(self) -> None:
        """Raise UsageError where a link stands for a file or folder of the node's: it writes and deletes there."""
        for path in (self.path / name for name in self.own):
            try:
                is_link = path.is_symlink()
            except OSError as error:
                raise self.unusable(error) from None
            if is_link:
                raise UsageError(
                    f"{path} is a symbolic link: put the file or folder itself in its place, or {self.elsewhere}"
                )

    def free_bytes(self) -> int:
        """What this account may still write there. Raises UsageError where that cannot be told."""
        try:
            room = os.statvfs(self.nearest())
        except OSError as error:
            raise self.unusable(error) from None
        return room.f_bavail * room.f_frsize

    def scarcity(self, free_bytes: int) -> str:
        """The sentence about so little space; empty where there is enough."""
        if free_bytes >= _ENOUGH_BYTES:
            return ""
        return (
            f"{self.name} {self.path} has {free_bytes >> 20} MiB left, and should have"
            f" {_ENOUGH_BYTES >> 20}: free space there, or {self.elsewhere}"
        )

    def nearest(self) -> Path:
        """The directory, or the one above it that exists. Raises OSError where it cannot be one."""
        for path in (self.path, *self.path.absolute().parents):
            if path.is_dir():
                return path
            if path.exists() or path.is_symlink():
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path))
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self.path))


def state_directory(path: Path) -> WritableDirectory:
    return WritableDirectory(
        path,
        "the state directory",
        "name another directory as `state` in this node's file",
        _OF_STATE,
    )


def run_folder(path: Path) -> WritableDirectory:
    return WritableDirectory(path, "the run's folder", "choose another --out")
