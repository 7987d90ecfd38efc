"""The models that rounds start from, where their sums, rules or optimizers need them.

It is the job's last release, from this aggregator's own disk. Before the first, and where the file of the last was
lost, it is what the coordinator brings: its digest is in the manifest, so that no owner has trained from another.
"""

from pathlib import Path

from blake3 import blake3

from aggregator_node.rounds.upload import RoundContext
from aggregator_node.storage.store import Store
from cairn.errors import WrongState
from cairn.model.safetensors_reader import map_values
from cairn.v1 import round_pb2 as pb


class Bases:
    """Every method may be called from any thread."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def of(self, context: RoundContext) -> memoryview | None:
        """The values of the round's base; None where the round does without.

        Raises WrongState, with the reason MODEL_MISSING, where it is not here.
        """
        if not context.needs_base:
            return None
        manifest = context.manifest
        path = self.path(manifest.job, manifest.job_digest, manifest.base_digest)
        if not path.exists() or not has_digest(path, manifest.base_digest):
            path.unlink(missing_ok=True)
            raise WrongState(
                "the aggregator has not the model that this round starts from: send it first",
                pb.REASON_MODEL_MISSING,
            )
        return map_values(path, context.job.schema)

    def path(self, job: str, job_digest: bytes, base_digest: bytes) -> Path:
        """Where the model of this digest is, or is to be."""
        last = self._store.last_release(job)
        if last is not None and last.release_digest == base_digest:
            path = self._store.release_path(last.manifest_digest)
            if path.exists():
                return path
        return self._store.first_models.path(job_digest)


def has_digest(path: Path, digest: bytes) -> bool:
    """Whether the file is the model of this digest."""
    try:
        return blake3().update_mmap(path).digest() == digest
    except FileNotFoundError:
        return False
