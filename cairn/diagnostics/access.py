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
    who = _others_who_may_write(place.path)
    if not who:
        return []
    sentence = (
        f"{who} may write to {place.name} {place.path}: run `chmod go-w {place.path}`, or"
        f" {place.elsewhere}"
    )
    # Where others can add files and change none it is no fault; and not every folder is relied on.
    is_fault = place.is_relied_on and not _is_sticky(place.path)
    return [fault("access", sentence) if is_fault else warning("access", sentence)]


def file_access_findings(files: Iterable[Path]) -> list[Finding]:
    """Whether others may change these files, or put others in their places."""
    existing = [path for path in files if _look(path) is not None]
    cure = "which this node trusts: run `chmod go-w"
    findings = [
        fault("access", f"{who} may change {path}, {cure} {path}`")
        for path in existing
        if (who := _others_who_may_write(path))
    ]
    findings += [
        warning("access", f"{who} may replace the files in {path}, {cure} {path}`")
        for path in dict.fromkeys(path.parent for path in existing)
        if not _is_sticky(path) and (who := _others_who_may_write(path))
    ]
    if existing and not findings:
        names = ", ".join(map(str, existing))
        return [ok("access", f"only this account may change {names}")]
    return findings


def _look(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except OSError:
        return None


def _is_sticky(path: Path) -> bool:
    """Whether the others who may write to a directory can add files and change none."""
    found = _look(path)
    return found is not None and bool(found.st_mode & stat.S_ISVTX)


def _others_who_may_write(path: Path) -> str:
    """Who besides this account, the owner and root may write, in words; empty where nobody, or nothing is there."""
    found = _look(path)
    if found is None:
        return ""
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
