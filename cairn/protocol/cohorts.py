"""Who may be in a job and in a round: names, lists of owners, and the groups of a job. Pure."""

import re
from collections.abc import Collection, Sequence

from cairn.errors import InvalidMessage
from cairn.protocol.limits import MAX_COHORT, MIN_COHORT, NAME_PATTERN
from cairn.v1 import round_pb2 as pb

Groups = tuple[tuple[str, ...], ...]  # of a job; none where a cohort may be of any of its owners


def check_name(text: str, field: str) -> str:
    if not re.fullmatch(NAME_PATTERN, text):
        raise InvalidMessage(f"{field} is not a name of 1 to 63 of a-z, 0-9, '-', '_' and '.'")
    return text


def check_owners(names: Sequence[str]) -> tuple[str, ...]:
    owners = tuple(names)
    if len(owners) < MIN_COHORT:
        raise InvalidMessage(
            f"{len(owners)} owners: there must be at least {MIN_COHORT}, because an average of one is"
            " that one's update",
            pb.REASON_COHORT_TOO_SMALL,
        )
    if list(owners) != sorted(set(owners)) or len(owners) > MAX_COHORT:
        raise InvalidMessage(
            f"{len(owners)} owners: there must be {MIN_COHORT} to {MAX_COHORT}, sorted, each once"
        )
    for name in owners:
        check_name(name, "owner")
    return owners


def check_groups(groups: Sequence[Sequence[str]], owners: Sequence[str], floor: int) -> Groups:
    """The groups of a job with these sorted owners. Raises InvalidMessage where they are none."""
    divided = tuple(tuple(group) for group in groups)
    if not divided:
        return ()
    check_group_sizes(divided, floor)
    if sorted(name for group in divided for name in group) != list(owners):
        raise InvalidMessage("the groups of the job do not have each of its owners once")
    if len(divided) == 1 or list(divided) != sorted(tuple(sorted(group)) for group in divided):
        raise InvalidMessage(
            "the groups of the job are not two or more, sorted, with sorted owners"
        )
    return divided


def check_group_sizes(groups: Groups, floor: int) -> None:
    """Raise InvalidMessage where a group is smaller than the floor: it could never be released."""
    smallest = min(map(len, groups), default=floor)
    if smallest < floor:
        raise InvalidMessage(
            f"a group of the job has {smallest} owners, the floor is {floor}: no round of it could ever"
            " be released. Ask for a larger fraction of the owners, or for all",
            pb.REASON_COHORT_TOO_SMALL,
        )


def are_of_one_group(groups: Groups, owners: Collection[str]) -> bool:
    """Whether these owners of a job may be averaged together, as far as its groups say."""
    return not groups or any(set(owners) <= set(group) for group in groups)
