"""What this owner allows of a job of statistics, beside what it allows of every job. Pure."""

from collections.abc import Mapping

from cairn.protocol.statistics import base_digest_of
from cairn.v1 import round_pb2 as pb
from owner_node.invitation import Declined, Invited
from owner_node.records.budgets import Budgets
from owner_node.task_rules import TaskRules


def check_statistics(tasks: Mapping[str, TaskRules], invited: Invited, budgets: Budgets) -> None:
    """Raise Declined for statistics that this owner has no part in. The policy has allowed the job otherwise."""
    job, manifest = invited.job, invited.manifest
    if job.statistics is None:
        return
    if not manifest.trains or manifest.base_digest != base_digest_of(job.schema):
        raise Declined(
            f"{manifest} counts data, and starts from a model other than that of zeros",
            pb.REASON_BASE_MISMATCH,
        )
    of_task = tasks[job.task]
    if job.statistics.min_cell < of_task.min_cell:
        raise Declined(
            f"the job releases cells of {job.statistics.min_cell} examples; this owner's file allows none of fewer than"
            f" {of_task.min_cell} (min_cell) for the task {job.task}",
            pb.REASON_JOB_REFUSED,
        )
    for column in job.statistics.columns:
        left = budgets.counted(job.task, column.name, besides=invited.digest)
        if left >= of_task.max_statistics:
            raise Declined(
                f"the column {column.name} of the task {job.task} has left this site as often as this owner's file allows"
                f" ({of_task.max_statistics}, max_statistics)",
                pb.REASON_TOO_MANY_ROUNDS,
            )
