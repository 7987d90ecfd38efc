"""An invitation to a round, what this owner knows of its job and task, and how it says no. Pure."""

from dataclasses import dataclass

from cairn.errors import CairnError
from cairn.protocol.messages import JobSpec, Manifest
from cairn.tasks.accounting import PrivateSteps
from cairn.v1 import round_pb2 as pb


class Declined(CairnError):
    """This owner does not take part; the reason is all that the others learn."""

    def __init__(self, message: str, reason: "pb.Reason") -> None:
        super().__init__(message, reason)


@dataclass(frozen=True)
class Invited:
    """What an invitation says: a manifest that the aggregator signed, and the job it came with.

    `digest` is the manifest's, and the job's is the one that the manifest names.
    """

    manifest: Manifest
    digest: bytes
    job: JobSpec

    @property
    def ids(self) -> tuple[str, int]:
        """The job's name and the round's number."""
        return self.manifest.job, self.manifest.round


@dataclass(frozen=True)
class LastRound:
    """A round that this owner took part in."""

    round: int
    phase: int
    manifest_digest: bytes


@dataclass(frozen=True)
class JobHistory:
    """What this owner's ledger says of the job and of the task before the invitation.

    `last` is the last round of the job that it took part in and `release` the latest release of the
    job whose statement it has seen, as its round and the model's digest. `taken` is how many other rounds
    of the task and the phase it took part in, and `failures` in how many of the task it was not counted for
    a cause that may depend on its data, since the last reset. `told` is what noisy releases of the task, besides this
    one, have told of it, in zero-concentrated differential privacy. `private` is what its private trainings were
    allowed, in all jobs, and `next_private` what another is likely to ask for.
    """

    last: LastRound | None = None
    release: tuple[int, bytes] | None = None
    taken: int = 0
    failures: int = 0
    told: float = 0.0
    private: tuple[PrivateSteps, ...] = ()
    next_private: tuple[PrivateSteps, ...] = ()
