"""How many owners may be averaged together."""

import pytest

from cairn.errors import InvalidMessage
from cairn.protocol.cohorts import check_owners

MOST = (
    1024  # the sums of integers are reckoned for so many of the largest weight: aggregation/mean.py
)


def named(count: int) -> list[str]:
    return [f"owner-{number:04}" for number in range(count)]


@pytest.mark.parametrize("count", [2, MOST])
def test_so_many_owners_are_a_cohort(count: int) -> None:
    assert check_owners(named(count)) == tuple(named(count))


@pytest.mark.parametrize("count", [0, 1, MOST + 1])
def test_so_few_and_so_many_are_none(count: int) -> None:
    with pytest.raises(InvalidMessage, match=f"{count} owners: there must be"):
        check_owners(named(count))
