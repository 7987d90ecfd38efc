import errno
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cairn.errors import UsageError
from cairn.runtime.failpoints import NAMES, failpoint, switch_on_failpoints

FIRST, SECOND = NAMES[:2]
SWITCH_ON = "from cairn.runtime.failpoints import *; switch_on_failpoints('ward'); "


def run(code: str, acting: str, log: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = {"CAIRN_FAILPOINTS": acting, "CAIRN_FAILPOINTS_IN": "ward"}
    if log is not None:
        environment["CAIRN_FAILPOINTS_LOG"] = str(log)
    return subprocess.run(
        [sys.executable, "-c", SWITCH_ON + code],
        env=environment | {"PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_point_is_nothing_where_nobody_switched_it_on() -> None:
    switch_on_failpoints("ward", {})
    for name in NAMES:
        failpoint(name)


@pytest.mark.parametrize("variable", ["CAIRN_FAILPOINTS", "CAIRN_FAILPOINTS_LOG"])
@pytest.mark.parametrize("permitted", [{}, {"CAIRN_FAILPOINTS_IN": "another"}])
def test_they_are_refused_where_the_federation_is_not_the_one_that_a_test_names(
    variable: str, permitted: dict[str, str]
) -> None:
    environment = {variable: f"{FIRST}=kill", **permitted}
    with pytest.raises(UsageError, match=f"{variable} is set: it makes nodes fail on purpose"):
        switch_on_failpoints("ward", environment)


@pytest.mark.parametrize(
    ("text", "trouble"),
    [
        ("aggregator.nothing=kill", "there is no failpoint aggregator.nothing"),
        (f"{FIRST}=explode", "explode is none of kill, stop, exit, raise:EIO, raise:ENOSPC"),
        (f"{FIRST}", "is not NAME=ACTION"),
        (f"{FIRST}=kill@0", "is not NAME=ACTION"),
        (f"{FIRST}=kill@x", "is not NAME=ACTION"),
    ],
)
def test_what_is_no_point_or_no_action_is_a_mistake(text: str, trouble: str) -> None:
    environment = {"CAIRN_FAILPOINTS": text, "CAIRN_FAILPOINTS_IN": "ward"}
    with pytest.raises(UsageError, match=trouble):
        switch_on_failpoints("ward", environment)


def test_a_name_that_is_not_in_the_list_is_an_error_in_the_code() -> None:
    done = run("failpoint('aggregator.nothing')", f"{FIRST}=kill")
    assert "AssertionError: aggregator.nothing is not in the list of failpoints" in done.stderr


def test_a_process_dies_at_the_point_and_not_at_another() -> None:
    done = run(
        f"failpoint('{SECOND}'); print('on', flush=True); failpoint('{FIRST}')", f"{FIRST}=kill"
    )
    assert (done.returncode, done.stdout) == (-signal.SIGKILL, "on\n")
    assert run(f"failpoint('{FIRST}')", f"{FIRST}=exit").returncode == 1


@pytest.mark.parametrize("word", ["EIO", "ENOSPC"])
def test_an_error_is_raised_the_time_that_is_asked_for_and_no_other(word: str) -> None:
    code = f"""
for _ in range(4):
    try:
        failpoint('{FIRST}')
        print('passed')
    except OSError as error:
        print(error.errno, error.filename)
"""
    done = run("exec(" + repr(code) + ")", f"{FIRST}=raise:{word}@3,{SECOND}=kill")
    raised = f"{getattr(errno, word)} failpoint {FIRST}"
    assert done.stdout.splitlines() == ["passed", "passed", raised, "passed"]


def test_every_point_that_is_reached_is_written_down(tmp_path: Path) -> None:
    log = tmp_path / "reached"
    code = f"failpoint('{FIRST}'); failpoint('{SECOND}'); failpoint('{FIRST}')"
    for _ in range(2):
        assert run(code, "", log).returncode == 0
    assert log.read_text().splitlines() == [FIRST, SECOND, FIRST] * 2
