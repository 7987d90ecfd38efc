"""A line of a ledger.jsonl is an entry where it stands there as it was written, and in no other spelling."""

import json

import pytest

from cairn.errors import InvalidMessage
from cairn.ledger.chain import Entry
from cairn.ledger.files import entry_of, line_of

ENTRY = Entry(1, "job", b'{"job":"tumours"}', bytes(range(32)))
VALUES = {
    "number": 1,
    "kind": "job",
    "body": '{"job":"tumours"}',
    "head": bytes(range(32)).hex(),
}
LINE = json.dumps(VALUES).encode() + b"\n"


def test_an_entry_is_read_back_from_the_line_that_was_written() -> None:
    assert line_of(ENTRY) == LINE
    assert entry_of(LINE, 1) == ENTRY


@pytest.mark.parametrize(
    "values",
    [
        VALUES | {"number": True},
        VALUES | {"number": 1.0},
        VALUES | {"more": 1},
        VALUES | {"head": VALUES["head"].upper()},  # type: ignore[attr-defined] # it is a text
        dict(reversed(VALUES.items())),
    ],
    ids=["true", "1.0", "one more", "capitals", "another order"],
)
def test_the_same_entry_in_another_spelling_is_refused(values: dict[str, object]) -> None:
    with pytest.raises(InvalidMessage, match="line 1 is cut off or was changed"):
        entry_of(json.dumps(values).encode() + b"\n", 1)


def test_a_space_that_was_added_is_refused() -> None:
    with pytest.raises(InvalidMessage, match="line 1 is cut off or was changed"):
        entry_of(LINE.replace(b'"job"', b' "job"', 1), 1)
