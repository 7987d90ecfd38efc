"""Who may take part, as the file has it now."""

import os
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from aggregator_node.roster import MAX_AGE_SECONDS, Listed, Roster
from cairn.errors import CallerNotAllowed, Unavailable, UsageError
from cairn.identity.certified import Certified
from cairn.identity.names import NodeName, Role
from cairn.runtime.clock import Clock
from cairn.v1 import round_pb2 as pb


class SetClock(Clock):
    """A clock that stands where the test puts it."""

    now = 0.0

    def monotonic(self) -> float:
        return self.now


def read(path: Path) -> Listed:
    """A name a word; a word with a minus before it is a revoked fingerprint."""
    text = path.read_text(encoding="utf-8") if path.exists() else "broken"
    if "nested" in text:
        raise RecursionError
    if "broken" in text:
        raise UsageError("it cannot be used")
    words = text.split()
    revoked = frozenset(word[1:] for word in words if word.startswith("-"))
    return Listed(frozenset(word for word in words if not word.startswith("-")), revoked)


def certificate(name: str, role: Role = Role.OWNER) -> Certified:
    fingerprints = (f"certificate-of-{name}", f"key-of-{name}")
    return Certified(NodeName("clinics", role, name), datetime.now(UTC), fingerprints)


COORDINATOR = certificate("coordinator", Role.COORDINATOR)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = tmp_path / "aggregator.toml"
    file.write_text("alice bob")
    return file


@pytest.fixture
def clock() -> SetClock:
    return SetClock()


@pytest.fixture
def roster(file: Path, clock: SetClock) -> Roster:
    return Roster(file, read, clock)


def test_a_file_that_cannot_be_used_at_the_start_is_a_mistake(file: Path, clock: SetClock) -> None:
    file.write_text("broken")
    with pytest.raises(UsageError):
        Roster(file, read, clock)


def test_an_owner_is_refused_as_soon_as_the_file_does_not_list_it(
    file: Path, roster: Roster
) -> None:
    roster.check(certificate("alice"))
    file.write_text("bob")
    with pytest.raises(CallerNotAllowed, match=r"alice.*is not on the roster") as caught:
        roster.check(certificate("alice"))
    assert caught.value.reason == pb.REASON_UNKNOWN_OWNER
    roster.check(certificate("bob"))
    file.write_text("alice bob")
    roster.check(certificate("alice"))


def test_changes_in_a_row_are_seen_whatever_the_file_system_says_of_them(
    file: Path, roster: Roster
) -> None:
    for names in ("carol bob", "alice eve", "carol bob"):
        before = file.stat()
        with file.open("r+") as same:
            same.write(names)
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
        assert roster.owners() == set(names.split())


def test_only_owners_are_on_the_roster(roster: Roster) -> None:
    roster.check(COORDINATOR)


@pytest.mark.parametrize("role", [Role.OWNER, Role.COORDINATOR])
@pytest.mark.parametrize("kind", ["certificate", "key"])
def test_a_certificate_is_refused_as_soon_as_the_file_lists_it_or_its_key_as_revoked(
    file: Path, roster: Roster, role: Role, kind: str
) -> None:
    roster.check(certificate("alice", role))
    file.write_text(f"alice bob -{kind}-of-alice")
    with pytest.raises(CallerNotAllowed, match=r"alice.* was revoked") as caught:
        roster.check(certificate("alice", role))
    assert caught.value.reason == pb.REASON_NOT_ALLOWED
    roster.check(certificate("bob"))


def broken(file: Path) -> None:
    file.write_text("broken")


def gone(file: Path) -> None:
    file.unlink()


def a_fifo(file: Path) -> None:
    """Whoever opens it to read waits."""
    file.unlink()
    os.mkfifo(file)


def nested(file: Path) -> None:
    """No reader of ours has a word for what is wrong."""
    file.write_text("nested")


@pytest.mark.parametrize("change", [broken, gone, a_fifo, nested])
def test_a_file_that_cannot_be_used_leaves_the_roster_for_an_hour_and_then_admits_nobody(
    file: Path, roster: Roster, clock: SetClock, change: Callable[[Path], None]
) -> None:
    change(file)
    for clock.now in (0.0, MAX_AGE_SECONDS - 1.0):
        roster.check(certificate("alice"))
        roster.check(COORDINATOR)
        assert roster.owners() == {"alice", "bob"}
        with pytest.raises(CallerNotAllowed):
            roster.check(certificate("mallory"))
    clock.now = MAX_AGE_SECONDS
    for caller in (certificate("alice"), COORDINATOR):
        with pytest.raises(Unavailable, match="must mend the file"):
            roster.check(caller)
    assert roster.owners() == frozenset()
    file.unlink(missing_ok=True)
    file.write_text("bob")
    roster.check(certificate("bob"))
    roster.check(COORDINATOR)
    with pytest.raises(CallerNotAllowed):
        roster.check(certificate("alice"))


def test_to_break_the_file_in_another_way_does_not_begin_the_hour_anew(
    file: Path, roster: Roster, clock: SetClock
) -> None:
    broken(file)
    assert roster.owners()
    clock.now = MAX_AGE_SECONDS - 1.0
    file.write_text("broken otherwise")
    assert roster.owners()
    clock.now = MAX_AGE_SECONDS
    assert not roster.owners()


@pytest.mark.parametrize("change", [broken, gone])
def test_who_was_removed_or_revoked_is_not_admitted_again_by_a_file_that_cannot_be_used(
    file: Path, roster: Roster, change: Callable[[Path], None]
) -> None:
    file.write_text("bob carol -key-of-carol")
    assert roster.owners() == {"bob", "carol"}
    change(file)
    for name in ("alice", "carol"):
        with pytest.raises(CallerNotAllowed):
            roster.check(certificate(name))
    roster.check(certificate("bob"))


def test_trouble_with_the_file_is_logged_at_once_and_every_minute_and_not_at_every_call(
    file: Path, roster: Roster, clock: SetClock
) -> None:
    broken(file)
    with capture_logs() as logs:
        for clock.now in (
            0.0,
            0.1,
            30.0,
            60.0,
            61.0,
            119.9,
            120.0,
            MAX_AGE_SECONDS,
            MAX_AGE_SECONDS + 1,
        ):
            roster.look()
    assert [line["log_level"] for line in logs] == ["error", "error", "error", "critical"]
    assert [line.get("nobody_is_admitted_in_seconds") for line in logs] == [3600, 3540, 3480, None]
    assert {line["reason"] for line in logs} == {"it cannot be used"}


def test_who_comes_and_goes_is_logged_by_name(file: Path, roster: Roster) -> None:
    with capture_logs() as logs:
        file.write_text("bob carol -key-of-dora")
        roster.look()
        file.write_text("bob carol")
        roster.look()
    assert [(line["event"], line.get("owner") or line["fingerprint"]) for line in logs] == [
        ("owner removed from the roster", "alice"),
        ("owner added to the roster", "carol"),
        ("certificate revoked", "key-of-dora"),
        ("certificate no longer revoked", "key-of-dora"),
    ]
