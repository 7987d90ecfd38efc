"""What a check of a node or of what it left found: how bad it is, and one line for a person. Pure."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from functools import partial

from cairn.errors import UsageError


class Grade(StrEnum):
    OK = "ok"
    NOTE = "note"  # neither good nor bad, such as a node that is running
    WARNING = "warning"  # it works now, and may not for long
    FAULT = "fault"  # the node does not start with it, or cannot do its part
    BEHIND = "BEHIND"  # nothing is wrong, but what is there does not go far enough to prove it
    FAILED = "FAILED"  # it is not as it was signed and recorded


@dataclass(frozen=True)
class Finding:
    """One thing that was checked, by the name of the check or of the file.

    The sentence of a warning or a fault names the cause and the cure.
    """

    grade: Grade
    check: str
    sentence: str

    @property
    def good(self) -> bool:
        return self.grade is Grade.OK

    def __str__(self) -> str:
        return f"{self.grade} {self.check}: {self.sentence}"

    def line(self, width: int) -> str:
        """The finding as a line, its grade in a column of this width."""
        return f"{self.grade:{width}}{self.check}: {self.sentence}"


ok = partial(Finding, Grade.OK)
note = partial(Finding, Grade.NOTE)
warning = partial(Finding, Grade.WARNING)
fault = partial(Finding, Grade.FAULT)
failed = partial(Finding, Grade.FAILED)


def faults_of(check: str, error: UsageError) -> list[Finding]:
    """A finding for each line of the error: a file's error has one for every key that is wrong."""
    return [fault(check, line) for line in str(error).splitlines()]


def attempted(check: str, attempt: Callable[[], str]) -> list[Finding]:
    """What `attempt` says is well; or what the UsageError that it raises says is not."""
    try:
        return [ok(check, attempt())]
    except UsageError as error:
        return faults_of(check, error)


def of_grade(findings: Iterable[Finding], grade: Grade) -> list[Finding]:
    return [finding for finding in findings if finding.grade is grade]
