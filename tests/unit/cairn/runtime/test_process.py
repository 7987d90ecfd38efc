"""How a node logs, and how its process ends."""

import json
import subprocess
import sys

import pytest


def run(code: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env={"PYTHONPATH": ":".join(sys.path), **environment},
        timeout=60,
    )


@pytest.mark.parametrize(
    ("raised", "code", "words"),
    [
        ("UsageError('bob.toml: no key')", 2, "error: bob.toml: no key"),
        ("CairnError('too few owners')", 1, "error: too few owners"),
        ("OSError(28, 'No space left on device', 'run/model')", 1, "run/model"),
        ("KeyboardInterrupt()", 130, ""),
    ],
)
def test_a_node_ends_with_a_sentence_and_its_exit_code(raised: str, code: int, words: str) -> None:
    ended = run(
        "from cairn.errors import *; from cairn.runtime.process import exit_with\n"
        f"def fail(): raise {raised}\n"
        "exit_with(fail)"
    )
    assert ended.returncode == code
    assert words in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_bug_is_shown_whole() -> None:
    ended = run(
        "from cairn.runtime.process import exit_with\ndef fail(): raise ValueError('a bug')\nexit_with(fail)"
    )
    assert ended.returncode == 1
    assert "Traceback" in ended.stderr


def test_threads_that_wait_for_peers_do_not_hold_up_the_end() -> None:
    ended = run(
        "import threading; from cairn.runtime.process import exit_with\n"
        "threading.Thread(target=threading.Event().wait).start()\n"
        "exit_with(lambda: 0)"
    )
    assert ended.returncode == 0


LOGS = (
    "import structlog; from cairn.runtime.logging import start_logging\n"
    "start_logging(federation='clinics', node='bob')\n"
    "structlog.get_logger().info('accepted', job='tumours', round=3)\n"
)


def test_away_from_a_terminal_every_line_is_json_with_its_ids() -> None:
    line = json.loads(run(LOGS).stderr)
    ids = {key: line[key] for key in ("event", "federation", "node", "job", "round", "level")}
    assert ids == {
        "event": "accepted",
        "federation": "clinics",
        "node": "bob",
        "job": "tumours",
        "round": 3,
        "level": "info",
    }
    assert "timestamp" in line


def test_a_person_may_ask_for_text_and_for_warnings_only() -> None:
    assert "accepted" in run(LOGS, CAIRN_LOG="text").stderr
    assert not run(LOGS, CAIRN_LOG_LEVEL="warning").stderr


def test_an_aggregator_leaves_no_core_dump() -> None:
    ended = run(
        "import resource; from cairn.runtime.process import forbid_core_dumps\n"
        "forbid_core_dumps(); print(resource.getrlimit(resource.RLIMIT_CORE))"
    )
    assert ended.stdout.strip() == "(1, 1)"


@pytest.mark.parametrize(("hard", "expected"), [(2_000, 2_000), (4_096, 4_096)])
def test_a_listening_node_takes_as_many_connections_as_its_account_may(
    hard: int, expected: int
) -> None:
    ended = run(
        "import resource; from cairn.runtime.process import allow_many_connections\n"
        f"resource.setrlimit(resource.RLIMIT_NOFILE, (256, {hard}))\n"
        "allow_many_connections(1); print(resource.getrlimit(resource.RLIMIT_NOFILE))"
    )
    assert ended.stdout.strip() == f"({expected}, {hard})"


def test_the_limit_of_open_files_is_raised_to_65536_at_most() -> None:
    ended = run(
        "import resource; from unittest.mock import patch; from cairn.runtime import process\n"
        "asked = []\n"
        "with patch.object(resource, 'getrlimit', lambda kind: (256, resource.RLIM_INFINITY)),\\\n"
        "     patch.object(resource, 'setrlimit', lambda kind, limits: asked.append(limits)):\n"
        "    process.allow_many_connections(1)\n"
        "print(asked == [(65536, resource.RLIM_INFINITY)])"
    )
    assert ended.stdout.strip() == "True"


@pytest.mark.parametrize(
    ("hard", "ports", "expected"),
    [(1_024, 2, 448), (1_024, 1, 896), (100, 2, 32), (20_000, 2, 4_096)],
)
def test_the_connections_to_all_ports_leave_files_for_the_rest(
    hard: int, ports: int, expected: int
) -> None:
    ended = run(
        "import resource; from cairn.runtime.process import allow_many_connections\n"
        f"resource.setrlimit(resource.RLIMIT_NOFILE, (64, {hard}))\n"
        f"print(allow_many_connections({ports}))"
    )
    assert ended.stdout.strip() == str(expected)


def test_an_unexpected_error_shows_no_variable_of_its_frames() -> None:
    code = (
        "import structlog; from cairn.runtime.logging import start_logging\n"
        "start_logging()\n"
        "def receive(update):\n"
        "    raise ValueError('a bug')\n"
        "try:\n"
        "    receive(b'BOBS' + b'-UPDATE')\n"
        "except ValueError:\n"
        "    structlog.get_logger().exception('failed')\n"
    )
    for style in ("text", "json"):
        log = run(code, CAIRN_LOG=style).stderr
        assert "a bug" in log
        assert "BOBS-UPDATE" not in log


def test_a_log_that_nobody_reads_any_more_does_not_end_a_node() -> None:
    code = (
        "import os, structlog; from cairn.runtime.logging import start_logging\n"
        "start_logging()\n"
        "reader, writer = os.pipe(); os.dup2(writer, 2); os.close(reader); os.close(writer)\n"
        "structlog.get_logger().info('into the void')\n"
        "print('goes on')\n"
    )
    assert run(code).stdout == "goes on\n"


def test_refusals_are_logged_a_few_times_an_hour_and_the_others_are_counted_at_the_end() -> None:
    ended = run(
        "import structlog; from cairn.runtime.logging import start_logging; from cairn.runtime.process import exit_with\n"
        "start_logging(federation='clinics', node='bob')\n"
        "log = structlog.get_logger()\n"
        "def work():\n"
        "    for number in range(1000):\n"
        "        log.warning('refused', caller='eve', method='Push', error='LimitExceeded', reason=str(number % 2))\n"
        "        log.error('invitation refused', reason='an average of one' + 'x' * 10 * (number % 200))\n"
        "        log.info('released')\n"
        "        log.warning('declined', round=number, why='x')\n"
        "        log.info('declined', round=number, owner='eve')\n"
        "    return 0\n"
        "exit_with(work)",
        CAIRN_LOG="json",
    )
    lines = [json.loads(line) for line in ended.stderr.splitlines()]
    counted = {e["cause"]: e["count"] for e in lines if e["event"] == "lines were left out"}
    assert counted == {"eve": 980, "the coordinator": 940, "declined": 940}
    assert [e["reason"] for e in lines if e["event"] == "refused"] == list("01" * 10)
    refused = [e["reason"] for e in lines if e["event"] == "invitation refused"]
    assert len(refused) == 60
    assert max(map(len, refused)) == 500
    assert sum(e["event"] == "declined" for e in lines) == 1000 + 60
    assert sum(e["event"] == "released" for e in lines) == 1000
