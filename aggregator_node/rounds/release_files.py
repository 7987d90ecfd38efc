"""Writes the files of a release: the model, and beside it the state of the job's optimizer where it keeps one.

Both are on the disk, and synced, before they are recorded. The state follows on that of the job's last release.
"""

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from blake3 import blake3

from aggregator_node.optimizers.step import OptimizerStep
from aggregator_node.storage.rows import RoundRow
from aggregator_node.storage.store import Store
from cairn.model.safetensors_reader import map_values
from cairn.model.safetensors_writer import ModelWriter
from cairn.model.schema import Schema


class ReleaseDigests(NamedTuple):
    """The digests of a release's files; `optimizer_state` is empty where there is none."""

    model: bytes
    optimizer_state: bytes = b""


def write_model(path: Path, schema: Schema, pieces: Iterable[memoryview]) -> bytes:
    """Write a model, each piece while the next is made, and return its digest."""
    with (
        ModelWriter(path, schema) as new,
        ThreadPoolExecutor(1, thread_name_prefix="release") as beside,
    ):
        written = None
        for piece in pieces:
            if written is not None:
                written.result()
            written = beside.submit(new.write, piece)
        if written is not None:
            written.result()
        new.keep()
        return new.digest()


def write_step(
    store: Store,
    row: RoundRow,
    step: OptimizerStep,
    base: memoryview,
    result: Iterable[memoryview],
) -> ReleaseDigests:
    """Write what the optimizer makes of the rule's result, and the state that it has then.

    Raises OSError as the file system does, and where the state after the last release is gone; LimitExceeded as
    `OptimizerStep.release_blocks` does. Then the model's file may be there and is to be deleted.
    """
    model, schema = store.release_path(row.manifest_digest), step.state_schema
    if schema is None:
        return ReleaseDigests(write_model(model, step.schema, step.release_blocks(base, result)))
    last = _last_state(store, row.job, schema)
    with ModelWriter(store.optimizer_path(row.manifest_digest), schema) as state:
        pieces = step.release_blocks(base, result, last, state.write)
        digest = write_model(model, step.schema, pieces)
        state.keep()
        return ReleaseDigests(digest, state.digest())


def _last_state(store: Store, job: str, schema: Schema) -> memoryview | None:
    """The state after the job's last release, which is of this schema; None before its first."""
    last = store.last_release(job)
    if last is None:
        return None
    path = store.optimizer_path(last.manifest_digest)
    if not path.exists():
        raise OSError(
            f"{path} is gone, without which the optimizer of {job} cannot go on: put the file back, or begin a"
            " new job from the last release"
        )
    if blake3().update_mmap(path).digest() != store.optimizer_digest(last.manifest_digest):
        raise OSError(
            f"{path} is not the optimizer's state that was written there: put that file back, or begin a new job"
            " from the last release"
        )
    return map_values(path, schema)
