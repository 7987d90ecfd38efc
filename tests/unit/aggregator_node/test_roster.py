"""Who may take part, as the file has it now."""

from collections.abc import Callable, Collection
from pathlib import Path

import pytest

from aggregator_node.roster import Roster
from cairn.errors import CallerNotAllowed, UsageError
from cairn.identity import NodeName, Role
from cairn.v1 import round_pb2 as pb


def read(path: Path) -> Collection[str]:
    text = path.read_text(encoding="utf-8") if path.exists() else "broken"
    if "broken" in text:
        raise UsageError("it cannot be used")
    return text.split()


def owner(name: str) -> NodeName:
    return NodeName("clinics", Role.OWNER, name)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = tmp_path / "aggregator.toml"
    file.write_text("alice bob")
    return file


def test_a_file_that_cannot_be_used_at_the_start_is_a_mistake(file: Path) -> None:
    file.write_text("broken")
    with pytest.raises(UsageError):
        Roster(file, read)


def test_an_owner_is_refused_as_soon_as_the_file_does_not_list_it(file: Path) -> None:
    roster = Roster(file, read)
    roster.check(owner("alice"))
    file.write_text("bob")
    with pytest.raises(CallerNotAllowed, match=r"alice.*is not on the roster") as caught:
        roster.check(owner("alice"))
    assert caught.value.reason == pb.REASON_UNKNOWN_OWNER
    roster.check(owner("bob"))
    file.write_text("alice bob")
    roster.check(owner("alice"))


def test_a_change_that_leaves_the_size_as_it_was_is_seen(file: Path) -> None:
    roster = Roster(file, read)
    new = file.with_name("new")
    new.write_text("carol bo"[:9].ljust(9))
    assert new.stat().st_size == file.stat().st_size
    new.replace(file)
    assert roster.owners() == {"carol", "bo"}


def test_only_owners_are_on_the_roster(file: Path) -> None:
    Roster(file, read).check(NodeName("clinics", Role.COORDINATOR, "coordinator"))


def test_a_file_that_is_broken_or_gone_for_a_while_leaves_the_roster(file: Path) -> None:
    roster = Roster(file, read)
    changes: list[Callable[[], object]] = [lambda: file.write_text("broken"), file.unlink]
    for change in changes:
        change()
        with pytest.raises(CallerNotAllowed):
            roster.check(owner("mallory"))
        assert roster.owners() == {"alice", "bob"}
    file.write_text("bob")
    assert roster.owners() == {"bob"}
