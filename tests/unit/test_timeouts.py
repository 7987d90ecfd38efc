"""Every timeout stands in one table, in the code and in the documentation: read off the code itself."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from cairn.transport.channel import _DIALLING
from cairn.transport.server import _LISTENING

ROOT = Path(__file__).parents[2]
PACKAGES = ("cairn", "aggregator_node", "coordinator", "owner_node")
TABLE = ROOT / "cairn" / "runtime" / "timeouts.py"
# A pace, how far clocks may differ, and the most that a setting may say: nothing ends by these.
OTHERWISE = re.compile(r"EVERY|PAUSE|SKEW|MAX_")
PACES = {"grpc.initial_reconnect_backoff_ms", "grpc.max_reconnect_backoff_ms"}
TIMED = re.compile(r"(^|_)(timeout|seconds|ms)$", re.IGNORECASE)
WAITS = {"wait": 0, "join": 0, "acquire": 1, "result": 0, "sleep": 0, "settimeout": 0}
WAITS |= {"wait_for": 1, "create_connection": 1, "Timer": 0}


def modules() -> list[Path]:
    found = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    return [path for path in found if "_pb2" not in path.name and path != TABLE]


def is_number(node: ast.AST | None) -> bool:
    """Whether it is a number that the code itself says: 60, 0.5, 7 * 24 * 3600; but not 0 or None."""
    if isinstance(node, ast.BinOp):
        return is_number(node.left) and is_number(node.right)
    if not isinstance(node, ast.Constant) or isinstance(node.value, bool):
        return False
    return isinstance(node.value, int | float) and node.value != 0


def arguments(call: ast.Call) -> Iterator[ast.expr]:
    """What a call is told about time."""
    function = call.func
    name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
    if name in WAITS:
        yield from call.args[WAITS[name] : WAITS[name] + 1]
    option = isinstance(call.args[0], ast.Constant) and call.args[0].value if call.args else ""
    for keyword in call.keywords:
        if TIMED.search(keyword.arg or "") or (option == "--timeout" and keyword.arg == "default"):
            yield keyword.value


def defaults(function: ast.FunctionDef) -> Iterator[ast.expr]:
    named = function.args.posonlyargs + function.args.args
    values = [*function.args.defaults, *function.args.kw_defaults]
    last = [*named[len(named) - len(function.args.defaults) :], *function.args.kwonlyargs]
    for argument, value in zip(last, values, strict=True):
        if value is not None and TIMED.search(argument.arg):
            yield value


def timeouts_in(tree: ast.AST) -> Iterator[ast.AST]:
    """The numbers of a module that end a wait."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names = [target.id for target in targets if isinstance(target, ast.Name)]
            timed = [name for name in names if TIMED.search(name) and not OTHERWISE.search(name)]
            if timed and is_number(node.value):
                yield node
        elif isinstance(node, ast.Call):
            yield from filter(is_number, arguments(node))
        elif isinstance(node, ast.FunctionDef):
            yield from filter(is_number, defaults(node))
        elif isinstance(node, ast.Tuple) and len(node.elts) == 2:  # an option of gRPC
            name, value = node.elts
            option = str(name.value) if isinstance(name, ast.Constant) else ""
            if option.endswith("_ms") and option not in PACES and is_number(value):
                yield node


def table() -> dict[str, float]:
    """The constants of the one table, by name."""
    found = {}
    for node in ast.parse(TABLE.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign):
            (target,) = node.targets
            assert isinstance(target, ast.Name)
            found[target.id] = ast.literal_eval(node.value)
    return found


def test_no_timeout_stands_outside_the_table() -> None:
    found = [
        f"{path.relative_to(ROOT)}: {ast.unparse(node)}"
        for path in modules()
        for node in timeouts_in(ast.parse(path.read_text(encoding="utf-8")))
    ]
    assert found == []


@pytest.mark.parametrize(
    "code",
    [
        "_RECORD_SECONDS = 5.0",
        "_LONGEST_SECONDS = 8 * 24 * 3600",
        "lease_seconds: Seconds = 15",
        "stub.JoinRound(request, timeout=10)",
        "event.wait(5)",
        "condition.wait_for(lambda: True, 60)",
        "def call(timeout_seconds: float = 3.0) -> None: ...",
        "def call(*, seconds: float = 3.0) -> None: ...",
        'options = [("grpc.keepalive_timeout_ms", 10_000)]',
        'click.option("--timeout", default=3.0)',
        "time.sleep(2)",
    ],
)
def test_such_a_timeout_would_be_found(code: str) -> None:
    assert len(list(timeouts_in(ast.parse(code)))) == 1


@pytest.mark.parametrize(
    "code",
    [
        "_LOOK_EVERY_SECONDS = 0.5",
        "_RETURN_SECONDS = 2 * IDLE_SECONDS",
        "lease_seconds: Seconds = LEASE_SECONDS",
        "event.wait(SHUTDOWN_SECONDS)",
        "listener.stop(0.0)",
    ],
)
def test_a_pace_and_what_is_derived_from_the_table_are_none(code: str) -> None:
    assert list(timeouts_in(ast.parse(code))) == []


def test_there_are_fewer_than_ten_and_each_is_used() -> None:
    assert 0 < len(table()) < 10
    code = "\n".join(path.read_text(encoding="utf-8") for path in modules())
    assert [name for name in table() if not re.search(rf"\b{name}\b", code)] == []


def test_the_documentation_lists_exactly_these_with_their_values() -> None:
    text = (ROOT / "docs" / "protocol" / "states.md").read_text(encoding="utf-8")
    section = text.partition("\n## Timeouts\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `(\w+_SECONDS)` \| ([\d.]+) \|", section, re.MULTILINE)
    assert [(name, float(value)) for name, value in rows] == list(table().items())


def test_the_pages_say_the_defaults_of_the_settings() -> None:
    job = (ROOT / "docs" / "jobs.md").read_text(encoding="utf-8")
    node = (ROOT / "docs" / "operators" / "settings.md").read_text(encoding="utf-8")
    for page, key in (
        (job, "round_deadline_seconds"),
        (job, "gather_seconds"),
        (node, "lease_seconds"),
    ):
        default = table()[key.upper()]
        assert re.search(rf"^\| `{key}` \|[^|]*\| {default} \|$", page, re.MULTILINE), key


def test_both_sides_of_a_connection_notice_a_frozen_peer_at_the_ping() -> None:
    """gRPC's own limit of a ping is a minute, and the keepalive's timeout does not shorten it."""
    for side in (dict(_LISTENING), dict(_DIALLING)):
        assert side["grpc.http2.ping_timeout_ms"] == 10_000
        assert side["grpc.keepalive_timeout_ms"] == 10_000
        assert side["grpc.keepalive_time_ms"] <= 30_000


def test_an_aggregator_for_one_job_waits_longer_than_owners_are_gathered_for() -> None:
    """Between a release and its evaluation its coordinator does not call."""
    assert table()["SHUTDOWN_SECONDS"] >= table()["SHORT_WAIT_SECONDS"] + 1
