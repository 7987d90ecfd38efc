"""What `cairn doctor` says where other accounts may change what a node relies on."""

import grp
import os
import pwd
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.unit.cairn.cli.examination import examined, made

NODES = ("aggregator", "coordinator", "alice")
SOMEBODY = max(account.pw_uid for account in pwd.getpwall()) + 1


@pytest.fixture
def ward(tmp_path: Path) -> Path:
    return made(tmp_path)


def access(ward: Path, name: str, grade: str) -> list[str]:
    return examined(ward / f"{name}.toml").of("access", grade)


def trusted(ward: Path, name: str) -> list[Path]:
    files = [ward / f"{name}.toml", ward / name / "authority.crt"]
    return files if name == "aggregator" else [*files, ward / name / "aggregator.crt"]


@pytest.mark.parametrize("name", NODES)
def test_a_file_that_every_account_may_change_is_a_fault_with_its_cure(
    ward: Path, name: str
) -> None:
    (in_order,) = access(ward, name, "ok")
    assert all(str(path) in in_order for path in trusted(ward, name))
    for path in trusted(ward, name):
        mode = path.stat().st_mode
        path.chmod(0o646)
        assert access(ward, name, "fault") == [
            f"every account of this machine may change {path}, which this node trusts: run `chmod go-w {path}`"
        ]
        assert access(ward, name, "ok") == []
        path.chmod(mode)
    assert access(ward, name, "fault") == []


@pytest.mark.parametrize("name", ["aggregator", "alice"])
def test_a_state_directory_that_every_account_may_write_to_is_a_fault(
    ward: Path, name: str
) -> None:
    state = ward / name / "state"
    state.mkdir()
    state.chmod(0o777)
    (sentence,) = access(ward, name, "fault")
    assert sentence.startswith(
        f"every account of this machine may write to the state directory {state}: run `chmod go-w {state}`"
    )
    state.chmod(0o1777)
    assert access(ward, name, "fault") == []
    assert len(access(ward, name, "warning")) == 1


def test_a_directory_in_which_every_account_may_replace_the_files_is_a_warning(ward: Path) -> None:
    ward.chmod(0o777)
    (sentence,) = access(ward, "alice", "warning")
    assert f"may replace the files in {ward}, which this node trusts" in sentence
    ward.chmod(0o1777)
    assert access(ward, "alice", "warning") == []


def group_of(monkeypatch: pytest.MonkeyPatch, *members: str, main_of_eve: bool = False) -> None:
    """Have this machine know one group for every number, and one account more."""
    group_id = os.getegid() if main_of_eve else SOMEBODY
    eve = SimpleNamespace(pw_name="eve", pw_uid=SOMEBODY, pw_gid=group_id)
    accounts = [*pwd.getpwall(), eve]
    monkeypatch.setattr(pwd, "getpwall", lambda: accounts)
    group = SimpleNamespace(gr_name="staff", gr_mem=list(members))
    monkeypatch.setattr(grp, "getgrgid", lambda _: group)


def test_a_group_that_others_are_in_is_named_with_them(
    ward: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    group_of(monkeypatch, "eve")
    (ward / "alice.toml").chmod(0o664)
    (sentence,) = access(ward, "alice", "fault")
    assert sentence.startswith(f"the group staff (eve) may change {ward / 'alice.toml'}")


def test_a_group_that_is_the_main_one_of_another_account_is_named_too(
    ward: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    group_of(monkeypatch, main_of_eve=True)
    (ward / "alice.toml").chmod(0o664)
    (sentence,) = access(ward, "alice", "fault")
    assert "the group staff (eve) may change" in sentence


def test_a_group_without_others_is_as_good_as_none(
    ward: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    me = pwd.getpwuid(os.geteuid()).pw_name
    group_of(monkeypatch, me, "root")
    (ward / "alice.toml").chmod(0o664)
    (ward / "alice/state").mkdir()
    (ward / "alice/state").chmod(0o775)
    assert access(ward, "alice", "fault") == []


def test_a_group_that_this_machine_does_not_know_has_nobody_in_it(ward: Path) -> None:
    """As in a container, whose volumes belong to a number."""
    if os.geteuid() != 0:
        pytest.skip("only root gives a file to any group")
    (ward / "alice.toml").chmod(0o664)
    os.chown(ward / "alice.toml", -1, SOMEBODY)
    assert access(ward, "alice", "fault") == []
