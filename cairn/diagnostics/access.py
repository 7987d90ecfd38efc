"""Checks who else on this machine may change what a node relies on: its file, what it trusts, where it writes.

A group that nobody else is in, as many systems give to each account, is as good as none.
"""

import grp
import os
import pwd
import stat
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from cairn.diagnostics.findings import Finding, fault, ok, warning
from cairn.storage.directory import WritableDirectory

_NAMED = 3  # accounts in one sentence


def place_access_findings(place: WritableDirectory) -> list[Finding]:
    """Whether others may write where the node does; nothing where the directory is not there yet."""
    found = _look(place.path)
    who = _others_who_may_write(found) if found is not None else ""
    if found is None or not who:
        return []
    sentence = (
        f"{who} may write to {place.name} {place.path}: run `chmod go-w {place.path}`, or"
        f" {place.elsewhere}"
    )
    # Where a sticky bit is set, others can add files and change none; and not every folder is relied on.
    is_fault = place.is_relied_on and not found.st_mode & stat.S_ISVTX
    return [fault("access", sentence) if is_fault else warning("access", sentence)]


def file_access_findings(files: Iterable[Path]) -> list[Finding]:
    """Whether others may change these files, or put others in their places."""
    existing = [path for path in files if _look(path) is not None]
    findings = [fault("access", sentence) for path in existing if (sentence := _of_file(path))]
    directories = dict.fromkeys(path.parent for path in existing)
    findings += [warning("access", s) for path in directories if (s := _of_directory(path))]
    if existing and not findings:
        names = ", ".join(map(str, existing))
        return [ok("access", f"only this account may change {names}")]
    return findings


def _of_file(path: Path) -> str:
    found = _look(path)
    who = _others_who_may_write(found) if found is not None else ""
    return (
        f"{who} may change {path}, which this node trusts: run `chmod go-w {path}`" if who else ""
    )


def _of_directory(path: Path) -> str:
    found = _look(path)
    if found is None or found.st_mode & stat.S_ISVTX:
        return ""
    who = _others_who_may_write(found)
    return (
        f"{who} may replace the files in {path}, which this node trusts: run `chmod go-w {path}`"
        if who
        else ""
    )


def _look(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except OSError:
        return None


def _others_who_may_write(found: os.stat_result) -> str:
    """Who besides this account, the owner and root may write, in words; empty where nobody."""
    if found.st_mode & stat.S_IWOTH:
        return "every account of this machine"
    if found.st_mode & stat.S_IWGRP:
        members = _members(found.st_gid, {0, os.geteuid(), found.st_uid})
        if members:
            named = ", ".join(members[:_NAMED]) + (" and others" if len(members) > _NAMED else "")
            return f"the group {_group_name(found.st_gid)} ({named})"
    return ""


def _members(group: int, without: set[int]) -> list[str]:
    """The accounts of a group that this machine knows, but for some by their numbers."""
    numbers = {account.pw_name: account.pw_uid for account in pwd.getpwall()}
    of_group = {account.pw_name for account in pwd.getpwall() if account.pw_gid == group}
    with suppress(KeyError):  # a group without a name, as in a container, has no members
        of_group |= set(grp.getgrgid(group).gr_mem)
    return sorted(name for name in of_group if numbers.get(name) not in without)


def _group_name(group: int) -> str:
    try:
        return grp.getgrgid(group).gr_name
    except KeyError:
        return str(group)
