"""Keeps what a task keeps of its model (`Task.keeps`) on this owner's own disk from round to round.

    kept/<manifest digest>.<BLAKE3 of the file>.safetensors    what the training of that round made of it; mode 0600

It never leaves. Which file a job goes on with is what the ledger says (owner_node/records/kept_rounds.py): that of the
last round whose release counts this owner. So kept tensors and the job's model advance together, and a crash
at any moment leaves the two as they belong:

1. A file is durable before its round's update is recorded as sent. A node that dies before trains again from what
   was kept before, and one that dies after pushes the same update and does not train.
2. A file counts from the moment the ledger has the release, and not before: nothing is renamed.
3. A file that the ledger does not name any more is removed before the next is written and when the node starts.

That also keeps a coordinator from choosing a model that would read them out: after a release the base is that
release, and before the first one there are none.
"""

import re
from collections.abc import Callable
from pathlib import Path

from cairn.errors import Unavailable, UsageError
from cairn.model.safetensors_reader import read_model
from cairn.model.schema import Schema
from cairn.runtime.failpoints import failpoint
from cairn.storage.files import is_left_over, write_atomically
from cairn.v1 import round_pb2 as pb
from owner_node import events
from owner_node.events import Observer
from owner_node.invitation import Declined, Invited
from owner_node.records.kept_rounds import KeptRounds

FOLDER = "kept"  # in the state directory
_SUFFIX = ".safetensors"
_KEPT = re.compile(rf"([0-9a-f]{{64}})\.[0-9a-f]{{64}}{re.escape(_SUFFIX)}")


class KeptTensors:
    """The folder, for the one thread that takes part in rounds.

    `settle` is called before anything is read: afterwards the ledger has the ends of the job's earlier rounds.
    """

    def __init__(
        self,
        state: Path,
        rounds: KeptRounds,
        settle: Callable[[Invited], None],
        tell: Observer,
    ) -> None:
        """Remove what is left over of rounds that are not gone on with."""
        self.path = state / FOLDER
        self._rounds = rounds
        self._settle = settle
        self._tell = tell
        self.tidy()

    def load(self, invited: Invited, schema: Schema, into: memoryview) -> bool:
        """Put the job's kept tensors into memory of this schema; returns whether there are any.

        Raises Declined where they cannot be read, are damaged or are not of this schema, and where the aggregator cannot be
        asked whether the round before counted this owner.
        """
        try:
            self._settle(invited)
        except Unavailable as error:
            raise Declined(
                f"it is not known which kept tensors to go on with: {error}",
                pb.REASON_FETCH_FAILED,
            ) from None
        current = self._rounds.current(invited.job.task, invited.job.name)
        if current is None:
            return False
        path = next(iter(self._files_of(current)), None)
        if path is None:
            self._tell(events.KeptTensorsGone(*invited.ids, self.path / _pattern(current)))
            return False
        try:
            found, values = read_model(path)
        except UsageError as error:
            raise _refusal(invited, str(error)) from None
        if path.name != _name(current, found.digest(values)):
            raise _refusal(invited, f"{path} was damaged: its BLAKE3 is not the one in its name")
        if difference := schema.difference(found):
            raise _refusal(invited, f"{path} is not what the task keeps now: {difference}")
        into[:] = values
        return True

    def write(self, invited: Invited, schema: Schema, values: memoryview) -> None:
        """Make durable what the training of this round made of them. Raises Declined where the disk is full."""
        self.tidy()
        path = self.path / _name(invited.digest, schema.digest(values))
        try:
            path.parent.mkdir(mode=0o700, exist_ok=True)
            for earlier in self._files_of(invited.digest):  # that could not be removed before
                earlier.unlink()
            write_atomically(path, [schema.header(), values], mode=0o600)
        except OSError as error:
            raise Declined(
                f"the kept tensors of {invited.job.task} cannot be written to {path}, so nothing is sent: {error}",
                pb.REASON_STORAGE_FAILED,
            ) from None
        failpoint("owner.kept.written")

    def tidy(self) -> None:
        """Remove every file of ours that no job goes on with. Never raises."""
        for path in files_besides(self.path, self._rounds.all()):
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                self._tell(events.FileNotRemoved(path, error))

    def _files_of(self, manifest_digest: bytes) -> list[Path]:
        """At most one, where the disk did as it was told."""
        return sorted(self.path.glob(_pattern(manifest_digest)))


def _name(manifest_digest: bytes, digest: bytes) -> str:
    return f"{manifest_digest.hex()}.{digest.hex()}{_SUFFIX}"


def _pattern(manifest_digest: bytes) -> str:
    return f"{manifest_digest.hex()}.*{_SUFFIX}"


def files_besides(folder: Path, needed: set[bytes]) -> list[Path]:
    """The files with kept tensors, whole or not, but for those of the rounds that are needed, by manifest digest."""
    rounds = {digest.hex() for digest in needed}
    try:
        paths = list(folder.iterdir())
    except OSError:  # nothing was kept yet
        return []
    named = [(path, _KEPT.fullmatch(path.name)) for path in paths]
    return [
        path for path, ours in named if (ours and ours[1] not in rounds) or is_left_over(path.name)
    ]


def _refusal(invited: Invited, why: str) -> Declined:
    return Declined(
        f"{why}. To begin anew, stop this node and run `cairn reset --kept OWNER.toml {invited.job.task}`, which"
        " drops what the task has kept",
        pb.REASON_JOB_REFUSED,
    )
