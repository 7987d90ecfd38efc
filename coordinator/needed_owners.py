"""How many owners a round needs: the floor, or more where the job's rule does. Pure."""

from collections.abc import Collection
from dataclasses import dataclass

from cairn.protocol.aggregation import Aggregation
from cairn.protocol.words import word_of
from cairn.v1 import round_pb2 as pb


@dataclass(frozen=True)
class Needed:
    """So many owners, and the word of the rule where it is why they are more than the floor."""

    owners: int
    rule: str = ""

    @property
    def because(self) -> str:
        """Goes on a sentence that has the number."""
        return f" ({self.rule} needs {self.owners})" if self.rule else ""


def needed_in(aggregation: Aggregation, sizes: Collection[int], floor: int) -> Needed:
    """What a training needs of a group, where the groups are of these sizes.

    Raises ValueError with a sentence where one of the groups could never be enough.
    """
    word = word_of(pb.Rule, aggregation.rule)
    for size in sorted(sizes):
        averaged = aggregation.averages_over(size, floor)
        if averaged < floor:
            of = f"{size} owners" if len(sizes) == 1 else f"a group of {size} owners"
            why = (
                f"every number of its release would average over {averaged}, and the floor is {floor}"
                if averaged
                else f"it needs more owners for {aggregation}"
            )
            raise ValueError(
                f"rule {word}: no round of {of} could ever be released, for {why}: take more owners, or other"
                " numbers of the rule"
            )
    owners = max(aggregation.contributors_needed(size, floor) for size in sizes)
    return Needed(owners, word if owners > floor else "")
