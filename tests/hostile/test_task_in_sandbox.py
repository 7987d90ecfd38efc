"""A task that wants out: to the node's key and state, to another process's memory, to the network, to Unix sockets.

Each kind of sandbox is tried, with the real training process; a kind that this kernel cannot have is skipped.
"""

import os
import pty
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn

from cairn.errors import UsageError
from cairn.tasks.state_dict import payload_of, read_state
from owner_node.sandbox.choice import Kind, Sandbox, check_hides, sandbox_for, shown
from owner_node.training.supervisor import TaskSource, TrainingSupervisor, Work
from tests.scenarios.processes import ROOT
from tests.warm.start import Subprocess, general, start

# Says of each attempt 1 where it succeeds and 0 where the kernel refuses it.
TASK = """
import os, socket, tempfile
from pathlib import Path

import cairn, torch
from torch import nn
from torch.utils.data import DataLoader

def model(): return nn.Linear(2, 1)
def data(site): return cairn.Data(train=site.data, examples=5)

def succeeds(attempt):
    try:
        attempt()
    except OSError:
        return 0.0
    return 1.0

def connect(family, kind, address):
    with socket.socket(family, kind) as end:
        end.settimeout(2)
        end.connect(address)
        end.sendall(b"x")

def connect_pair(address):
    one, _ = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    one.connect(address)

def train(model, data, round):
    home, parent = Path({home!r}), f"/proc/{{os.getppid()}}"
    key, state = home / "node.key", home / "state"
    tcp, stream, datagram = {tcp!r}, str(home / "stream"), str(home / "datagram")
    attempts = {{
        "key": key.read_bytes,
        "key truncated": lambda: os.truncate(key, 0),
        "key deleted": key.unlink,
        "state": lambda: os.listdir(state),
        "written into state": (state / "x").touch,
        "written beside data": lambda: (data.train / "x").write_text("x"),
        "written into the library": lambda: (Path(cairn.__file__).parent / "planted.py").write_text(""),
        "through /proc": Path(f"{{parent}}/root{{key}}").read_bytes,
        "environment": Path(f"{{parent}}/environ").read_bytes,
        "memory": lambda: open(f"{{parent}}/mem", "rb"),
        "tcp": lambda: connect(socket.AF_INET, socket.SOCK_STREAM, tcp),
        "udp": lambda: connect(socket.AF_INET, socket.SOCK_DGRAM, tcp),
        "unix": lambda: connect(socket.AF_UNIX, socket.SOCK_STREAM, stream),
        "unix datagram": lambda: connect(socket.AF_UNIX, socket.SOCK_DGRAM, datagram),
        "unix pair": lambda: connect_pair(datagram),
        "abstract unix": lambda: connect(socket.AF_UNIX, socket.SOCK_STREAM, {abstract!r}),
    }}
    said = {{name: succeeds(attempt) for name, attempt in attempts.items()}}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(float((data.train / "value").read_text()))
    Path(tempfile.gettempdir(), "scratch").write_text("the task's own")
    said["read"] = float(Path({read!r}).read_text())
    return said

task = cairn.Task(model=model, data=data, train=train)
"""
Listening = dict[str, Any]


@pytest.fixture
def listening(tmp_path: Path) -> Iterator[Listening]:
    """A node's directory with its secrets, and sockets that listen on every family."""
    home = tmp_path / "node"
    (home / "state").mkdir(parents=True)
    (home / "node.key").write_bytes(b"the key")
    (home / "state/owner.sqlite").write_bytes(b"the ledger")
    data = tmp_path / "data"
    data.mkdir()
    (data / "value").write_text("2.0")
    (tmp_path / "further").write_text("7")
    abstract = f"\0cairn-{os.getpid()}"
    addresses: list[tuple[int, int, Any]] = [
        (socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.1", 0)),
        (socket.AF_UNIX, socket.SOCK_STREAM, str(home / "stream")),
        (socket.AF_UNIX, socket.SOCK_DGRAM, str(home / "datagram")),
        (socket.AF_UNIX, socket.SOCK_STREAM, abstract),
    ]
    ends = []
    for family, kind, address in addresses:
        ends.append(socket.socket(family, kind))
        ends[-1].bind(address)
        if kind is socket.SOCK_STREAM:
            ends[-1].listen()
    values = {
        "home": str(home),
        "tcp": ends[0].getsockname(),
        "abstract": abstract,
        "read": str(tmp_path / "further"),
    }
    (tmp_path / "task.py").write_text(TASK.format(**values))
    yield {"home": home, "data": data, "task": tmp_path / "task.py", "read": tmp_path / "further"}
    for end in ends:
        end.close()


def trained(listening: Listening, sandbox: Sandbox | None) -> tuple[dict[str, float], bytes]:
    """What the task says, and the update that it made."""
    source = TaskSource("toy", str(listening["task"]), listening["data"], sandbox=sandbox)
    torch.manual_seed(1)
    schema, base = payload_of(nn.Linear(2, 1).state_dict())
    with closing(TrainingSupervisor("bob", source)) as process:
        process.base_buffer(schema)[:] = base
        outcome = process.run(Work("job", 1, "train", {}, schema))
        state: dict[str, Tensor] = read_state(schema, outcome.payload)
        before: dict[str, Tensor] = read_state(schema, memoryview(base))
        assert all(torch.equal(state[name], 2 * tensor) for name, tensor in before.items())
        return outcome.metrics, bytes(outcome.payload)


def of_kind(kind: Kind, listening: Listening) -> Sandbox:
    paths = (listening["task"], listening["data"], listening["read"])
    sandbox = Sandbox(kind, tuple(map(str, paths)))
    try:
        shown(sandbox)
    except UsageError as error:
        pytest.skip(f"this kernel cannot have it: {error}")
    return sandbox


@pytest.mark.parametrize("kind", get_args(Kind))
def test_a_task_in_a_sandbox_trains_reaches_nothing_else_and_leaves_nothing_behind(
    listening: Listening, kind: Kind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    said, _ = trained(listening, of_kind(kind, listening))
    assert said.pop("read") == 7
    assert {name for name, succeeded in said.items() if succeeded} == set()
    assert (listening["home"] / "node.key").read_bytes() == b"the key"
    assert sorted(path.name for path in (listening["home"] / "state").iterdir()) == ["owner.sqlite"]
    assert list((tmp_path / "tmp").iterdir()) == []


def test_without_a_sandbox_the_same_task_reaches_all_of_it(
    listening: Listening, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("owner_node.training.child.subprocess", Subprocess(general))
    listening["task"].write_text(
        listening["task"]
        .read_text()
        .replace('(Path(cairn.__file__).parent / "planted.py")', '(data.train / "y")')
    )
    said, _ = trained(listening, None)
    reached = {name for name, succeeded in said.items() if succeeded}
    assert {
        "key",
        "state",
        "environment",
        "tcp",
        "unix",
        "unix datagram",
        "abstract unix",
    } <= reached


def test_the_worker_of_a_dataloader_can_be_forked_and_spawned_in_namespaces(
    listening: Listening,
) -> None:
    sandbox = of_kind("namespaces", listening)
    listening["task"].write_text(
        "import cairn, torch\nfrom torch import nn\nfrom torch.utils.data import DataLoader\n"
        "def model(): return nn.Linear(2, 1)\n"
        "def data(site): return cairn.Data(train=1, examples=5)\n"
        "def train(model, data, round):\n"
        "    for parameter in model.parameters(): parameter.data *= 2\n"
        "    rows = torch.utils.data.TensorDataset(torch.arange(100000.0))\n"
        "    return {c: sum(float(x.sum()) for (x,) in DataLoader(rows, batch_size=50000, num_workers=1,\n"
        "        multiprocessing_context=c)) for c in ('fork', 'spawn')}\n"
        "task = cairn.Task(model=model, data=data, train=train)\n"
    )
    said, _ = trained(listening, sandbox)
    assert said["fork"] == said["spawn"] == pytest.approx(4999950000)


def test_a_machine_that_can_have_no_sandbox_is_told_why_and_what_to_do(
    listening: Listening, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(sandbox: Sandbox) -> None:
        raise UsageError(f"the kernel has no {sandbox.kind}")

    monkeypatch.setattr("owner_node.sandbox.choice.shown", fail)
    with pytest.raises(UsageError) as caught:
        sandbox_for(str(listening["task"]), listening["data"], [])
    for words in ("the kernel has no namespaces", "the kernel has no landlock", 'sandbox = "off"'):
        assert words in str(caught.value)


def test_secrets_in_what_the_task_may_read_are_a_mistake(listening: Listening) -> None:
    sandbox = sandbox_for(str(listening["task"]), listening["data"], [listening["home"]])
    with pytest.raises(UsageError, match=r"node.key lies in .*node, which the task may read"):
        check_hides(sandbox, [listening["home"] / "node.key"])
    link = listening["data"] / "elsewhere"
    link.symlink_to(listening["home"])
    sandbox = sandbox_for(str(listening["task"]), listening["data"], [])
    check_hides(sandbox, [link / "node.key"])  # the link can be read, and what it leads to cannot


# The node's terminal is the task's standard error.
TYPES = """
import fcntl, termios
import cairn
from torch import nn

def model(): return nn.Linear(2, 1)
def data(site): return cairn.Data(train=1, examples=5)
def train(model, data, round):
    try:
        fcntl.ioctl(2, termios.TIOCSTI, b"x")
    except OSError:
        print("refused")
    else:
        print("typed")
    for parameter in model.parameters(): parameter.data *= 2
task = cairn.Task(model=model, data=data, train=train)
"""
AT_A_TERMINAL = """
import os, sys
from pathlib import Path
from owner_node.sandbox.choice import Sandbox
from tests.hostile.test_task_in_sandbox import trained

terminal, task, data, kind, *reads = sys.argv[1:]
os.login_tty(int(terminal))
trained({"task": Path(task), "data": Path(data)}, Sandbox(kind, tuple(reads)))
"""


@pytest.mark.parametrize("kind", get_args(Kind))
def test_a_task_in_a_sandbox_cannot_type_into_the_terminal_of_its_node(
    listening: Listening, kind: Kind
) -> None:
    sandbox = of_kind(kind, listening)
    listening["task"].write_text(TYPES)
    controller, terminal = pty.openpty()
    (listening["home"] / "node.py").write_text(AT_A_TERMINAL)
    arguments = [str(terminal), listening["task"], listening["data"], kind, *sandbox.reads]
    inherited = {0: terminal, 1: terminal, 2: terminal, terminal: terminal}
    process = start([listening["home"] / "node.py", *arguments], os.environ, inherited)
    assert process
    os.close(terminal)
    shown = b""
    with suppress(OSError):  # nobody has the terminal open any more
        while data := os.read(controller, 1 << 16):
            shown += data
    os.close(controller)
    assert process.wait() == 0, shown
    assert b"refused" in shown, shown


def test_where_no_namespaces_can_be_made_the_task_is_kept_in_by_landlock(
    listening: Listening,
) -> None:
    """As in a container: in a namespace of its own, a process can forbid itself to make more of them."""
    of_kind("landlock", listening)
    program = (
        "import sys; from tests.hostile.test_task_in_sandbox import chosen; chosen(sys.argv[1])"
    )
    forbidding = 'echo 0 > /proc/sys/user/max_user_namespaces && exec "$0" "$@"'
    command = ["unshare", "-Ur", "sh", "-c", forbidding, sys.executable, "-c", program]
    command.append(str(listening["task"]))
    if subprocess.run([*command[:5], "true"], check=False, capture_output=True).returncode:
        pytest.skip("this account can make no user namespace to try it in")
    said = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT)
    assert said.stdout == "landlock\n"


def chosen(task: str) -> None:
    """Print the kind of sandbox that this process can have."""
    print(sandbox_for(task, Path(task).parent / "data", []).kind)  # noqa: T201 - for the test
