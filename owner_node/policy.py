"""What this owner allows of an invitation. Pure; it decides before any data is opened."""

from collections.abc import Mapping
from dataclasses import dataclass

from cairn.errors import InvalidMessage
from cairn.protocol.cohorts import are_of_one_group
from cairn.protocol.limits import LARGEST_SHARE
from cairn.protocol.messages import Manifest
from cairn.v1 import round_pb2 as pb
from owner_node.invitation import Declined, Invited, JobHistory, LastRound
from owner_node.task_rules import TaskRules, check_task


@dataclass(frozen=True)
class Policy:
    """The owner's rules, from its file. `trusted` has the owner itself; None where it trusts all."""

    federation: str
    owner: str
    floor: int
    tasks: Mapping[str, TaskRules]
    trusted: frozenset[str] | None = None
    largest_share: float = LARGEST_SHARE
    largest_model_bytes: int = 1 << 33

    def check(self, invited: Invited, known: JobHistory) -> None:
        """Raise InvalidMessage for an invitation that is not for us, Declined for one we refuse."""
        self._check_addressee(invited)
        self._check_cohort(invited.manifest)
        self._check_share(invited.manifest)
        _check_group(invited)
        _check_order(invited, known.last)
        _check_chain(invited.manifest, known.release)
        self._check_task(invited, known)

    def _check_addressee(self, invited: Invited) -> None:
        manifest, job = invited.manifest, invited.job
        if job.name != manifest.job:
            raise InvalidMessage("the invitation's job is not the one the aggregator signed for")
        if manifest.federation != self.federation or job.federation != self.federation:
            raise InvalidMessage("the invitation is for another federation")
        if manifest.weighting != job.weighting:
            raise InvalidMessage("the manifest weighs the updates in another way than its job")
        if manifest.aggregation != job.aggregation:
            raise InvalidMessage("the manifest combines the updates in another way than its job")
        if manifest.encoding not in {pb.ENCODING_WHOLE, job.encoding}:
            raise InvalidMessage("the manifest has updates travel in another way than its job")
        if self.owner not in manifest.cohort:
            raise InvalidMessage("the invitation's cohort does not have this owner")

    def _check_cohort(self, manifest: Manifest) -> None:
        if manifest.floor < self.floor or len(manifest.cohort) < manifest.floor:
            raise Declined(
                f"the floor of {manifest} is {manifest.floor}, this owner's file asks for"
                f" {self.floor}",
                pb.REASON_FLOOR_TOO_LOW,
            )
        if self.trusted is None:
            return
        strangers = sorted(set(manifest.cohort) - self.trusted)
        # The owners that drop out may all be trusted ones.
        if manifest.floor - len(strangers) < self.floor:
            raise Declined(
                f"an average of {manifest.floor} owners may be over only"
                f" {max(0, manifest.floor - len(strangers))} whom this owner's file trusts, and it asks"
                f" for {self.floor}; it does not trust {', '.join(strangers)}",
                pb.REASON_UNTRUSTED_COHORT,
            )

    def _check_share(self, manifest: Manifest) -> None:
        # With no more owners than the floor all count the same, whatever share one might have.
        share = max(manifest.largest_share, 1 / manifest.floor)
        if share > self.largest_share:
            raise Declined(
                f"in {manifest}, whose floor is {manifest.floor}, one update may count for {share:.3g} of the total"
                f" weight; this owner's file allows {self.largest_share:g} (largest_share): the aggregator's"
                " largest_share must be as small, and the floor at least one divided by it",
                pb.REASON_SETTING_REFUSED,
            )

    def _check_task(self, invited: Invited, known: JobHistory) -> None:
        job = invited.job
        rules = self.tasks.get(job.task)
        if rules is None:
            tasks = ", ".join(self.tasks) or "none"
            raise Declined(
                f"the job asks for the task {job.task}; this owner's file has {tasks}",
                pb.REASON_UNKNOWN_TASK,
            )
        if job.schema.total_bytes > self.largest_model_bytes:
            raise Declined(
                f"the job's model has {job.schema.total_bytes} bytes, this owner's file allows"
                f" {self.largest_model_bytes} (largest_model_megabytes)",
                pb.REASON_TOO_MUCH,
            )
        check_task(rules, invited, known)
        self._check_averaged(invited)

    def _check_averaged(self, invited: Invited) -> None:
        aggregation = invited.job.aggregation
        manifest = invited.manifest
        averaged = aggregation.averages_over(len(manifest.cohort), manifest.floor)
        if manifest.trains and averaged < self.floor:
            raise Declined(
                f"by {aggregation}, an element of the release of {manifest} would be an average over {averaged}"
                f" owners; this owner's floor is {self.floor}",
                pb.REASON_RULE_REFUSED,
            )


def _check_group(invited: Invited) -> None:
    if not are_of_one_group(invited.job.groups, invited.manifest.cohort):
        raise Declined(
            f"the cohort of {invited.manifest} has owners of more than one group of the job",
            pb.REASON_MIXED_GROUPS,
        )


def _check_order(invited: Invited, last: LastRound | None) -> None:
    if last is None or invited.digest == last.manifest_digest:
        return
    manifest = invited.manifest
    if (manifest.round, int(manifest.phase)) <= (last.round, last.phase):
        raise Declined(
            f"{manifest} is not newer than round {last.round}, in which this owner took part",
            pb.REASON_STALE_ROUND,
        )


def _check_chain(manifest: Manifest, release: tuple[int, bytes] | None) -> None:
    """Whether the base is the job's last release, by the manifest and by what this owner has seen.

    A later release than the one it has seen may be behind a later round, but not behind the next.
    """
    previous = manifest.previous_release_digest
    if previous and manifest.base_digest != previous:
        raise Declined(f"the base of {manifest} is not the last release", pb.REASON_CHAIN_BROKEN)
    if release is None:
        return
    number, digest = release
    follows = manifest.round <= number + 1
    if not previous or (follows and previous != digest):
        raise Declined(
            f"{manifest} does not go on from the release of round {number}, which this owner has seen",
            pb.REASON_CHAIN_BROKEN,
        )
