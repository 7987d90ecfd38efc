"""Takes the model that a job starts from, where the aggregator needs it, from the job's coordinator."""

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from aggregator_node.rounds.bases import Bases, has_digest
from aggregator_node.rounds.jobs import JobRegistry
from aggregator_node.rounds.upload import check_chunk
from aggregator_node.storage.rows import spec_of
from aggregator_node.storage.store import Store
from cairn.errors import InvalidMessage, WrongState
from cairn.model.safetensors_writer import ModelWriter
from cairn.protocol.messages import JobSpec, digest_of
from cairn.v1 import round_pb2 as pb


class IncomingModel:
    """A model on its way in, chunk by chunk."""

    def __init__(self, new: ModelWriter) -> None:
        self._new = new

    def write(self, chunk: memoryview) -> None:
        """Take the next bytes. Raises LimitExceeded or InvalidMessage as `check_chunk` does."""
        check_chunk(len(chunk), self._new.missing, self._new.written + self._new.missing)
        self._new.write(chunk)


class ModelSubmission:
    """Every method may be called from any thread."""

    def __init__(self, jobs: JobRegistry, bases: Bases, store: Store) -> None:
        self._jobs = jobs
        self._bases = bases
        self._store = store
        self._beginning = threading.Lock()

    @contextmanager
    def receive(
        self, coordinator: str, job: str, epoch: int, digest: bytes
    ) -> Iterator[IncomingModel | None]:
        """Take the model of this digest inside, and keep it; None where it is here.

        Raises WrongState for a job that does not need it or has a round open, which starts from another; InvalidMessage
        for other bytes; and as JobRegistry does.
        """
        body = self._jobs.in_charge(coordinator, epoch, job).spec
        spec, job_digest = spec_of(body), digest_of(body)
        self._check_is_needed(spec, digest)
        if has_digest(self._bases.path(job, job_digest, digest), digest):
            yield None
            return
        self._check_no_round(job)
        with ExitStack() as stack:
            # Else two that begin at once would both be promised the same room.
            with self._beginning:
                self._make_room(coordinator, spec)
                new = stack.enter_context(self._store.first_models.begin(job_digest, spec.schema))
            yield IncomingModel(new)
            if new.missing or new.digest() != digest:
                raise InvalidMessage(
                    "the bytes that arrived are not the model of the digest in the header",
                    pb.REASON_BASE_MISMATCH,
                )
            self._jobs.in_charge(coordinator, epoch, job)  # another process may have taken over
            self._check_no_round(job)
            new.keep()

    def _check_is_needed(self, spec: JobSpec, digest: bytes) -> None:
        if not spec.aggregation.needs_base and spec.encoding == pb.ENCODING_WHOLE:
            raise WrongState(f"the job {spec.name} needs no model at the aggregator")
        if self._store.progress(spec.name).release_digest not in {b"", digest}:
            raise WrongState(
                f"the job {spec.name} goes on from its last release, and this is another model",
                pb.REASON_CHAIN_BROKEN,
            )

    def _check_no_round(self, job: str) -> None:
        """Else a coordinator could have any round end for want of its model, though it is sealed."""
        if any(row.job == job for row in self._store.open_rounds()):
            raise WrongState(
                f"a round of {job} is open, and another model may not take the place of the one that it starts from"
            )

    def _make_room(self, coordinator: str, spec: JobSpec) -> None:
        self._store.check_room(spec.schema.total_bytes)
        busy = {row.job for row in self._store.open_rounds()} | {spec.name}
        others = [row for row in self._store.jobs_of(coordinator) if row.name not in busy]
        self._store.first_models.make_room(digest_of(row.spec) for row in others)
