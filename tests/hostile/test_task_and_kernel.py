"""A task in a sandbox that turns to the kernel itself: to the node's limits and keyrings, to the modes of its files,
to networks that no namespace divides, and to the memory that it shares with its node.
"""

import os
import resource
import signal
import stat
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import pytest
import torch
from torch import nn

from cairn.errors import UsageError
from cairn.tasks.state_dict import payload_of
from owner_node.sandbox.choice import Kind, Sandbox, furnish, shown
from owner_node.sandbox.clearing import clear
from owner_node.training.supervisor import TaskFailed, TaskSource, TrainingSupervisor, Work
from tests.scenarios.processes import until
from tests.warm.start import Subprocess, general, run

TASK = """
import ctypes, os, resource, socket
from pathlib import Path
import cairn
from torch import nn

libc = ctypes.CDLL(None, use_errno=True)

def call(*arguments):
    if libc.syscall(*(ctypes.c_long(a) if isinstance(a, int) else a for a in arguments)) < 0:
        raise OSError(ctypes.get_errno(), "refused")

def succeeds(attempt):
    try:
        attempt()
    except OSError:
        return 0.0
    return 1.0

def agree(condition):
    if not condition:
        raise OSError

def model(): return nn.Linear(2, 1)
def data(site): return cairn.Data(train=site.data, examples=5)
def train(model, data, round):
    key, node, rows = {key!r}, os.getppid(), str(data.train)
    add_key, keyctl = (248, 250) if os.uname().machine == "x86_64" else (217, 219)
    here = {{**globals(), **locals()}}
    attempts = eval((data.train / "attempts").read_text(), here)
    return {{name: succeeds(attempt) for name, attempt in attempts.items()}}
task = cairn.Task(model=model, data=data, train=train)
"""
SCHEMA, BASE = payload_of(nn.Linear(2, 1).state_dict())


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return a_home(tmp_path)


def a_home(folder: Path) -> Path:
    (folder / "data").mkdir()
    (folder / "node").mkdir()
    (folder / "node/node.key").write_bytes(b"the key")
    (folder / "node/node.key").chmod(0o600)
    return folder


def of_kind(kind: Kind, home: Path) -> Sandbox:
    sandbox = Sandbox(kind, (str(home / "task.py"), str(home / "data")))
    try:
        shown(sandbox)
    except UsageError as error:
        pytest.skip(f"this kernel cannot have it: {error}")
    return sandbox


@dataclass(frozen=True)
class Attempts:
    """A task in a sandbox that tries whatever it is told to, round after round."""

    home: Path
    process: TrainingSupervisor

    def __call__(self, attempts: str) -> dict[str, float]:
        """What became of each attempt, as the task says it."""
        (self.home / "data/attempts").write_text(attempts)
        self.process.base_buffer(SCHEMA)[:] = BASE
        return self.process.run(Work("job", 1, "train", {}, SCHEMA)).metrics


@pytest.fixture(scope="module", params=get_args(Kind))
def tried(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Attempts]:
    home = a_home(tmp_path_factory.mktemp("sandboxed"))
    (home / "task.py").write_text(TASK.format(key=str(home / "node/node.key")))
    sandbox = of_kind(request.param, home)
    source = TaskSource("toy", str(home / "task.py"), home / "data", sandbox=sandbox)
    with closing(TrainingSupervisor("bob", source)) as process:
        yield Attempts(home, process)


each_kind = pytest.mark.parametrize("kind", get_args(Kind))


def test_a_task_in_a_sandbox_changes_no_limit_and_no_priority_of_its_node(tried: Attempts) -> None:
    """With a limit of no time or no files it could end a node that it may send no signal."""
    before = resource.getrlimit(resource.RLIMIT_CORE)
    said = tried(
        """{
            "limit": lambda: resource.prlimit(node, resource.RLIMIT_CORE, (0, 0)),
            "limit read": lambda: resource.prlimit(node, resource.RLIMIT_CORE),
            "priority": lambda: os.setpriority(os.PRIO_PROCESS, node, 5),
            "own limit": lambda: resource.setrlimit(resource.RLIMIT_CORE, (0, 0)),
            "own priority": lambda: os.nice(1),
        }""",
    )
    assert said == {"limit": 0, "limit read": 0, "priority": 0, "own limit": 1, "own priority": 1}
    assert resource.getrlimit(resource.RLIMIT_CORE) == before


def test_a_task_in_a_sandbox_changes_no_mode_owner_time_or_attribute_of_a_file(
    tried: Attempts,
) -> None:
    """Landlock lets them be changed, and a key that all may read is a key that is given away."""
    null = Path("/dev/null").stat()
    said = tried(
        f"""{{
            "mode": lambda: os.chmod(key, 0o666),
            "owner": lambda: os.chown(key, os.getuid(), os.getgid()),
            "times": lambda: os.utime(key, (1, 1)),
            "attribute": lambda: os.setxattr(key, "user.cairn", b"1"),
            "mode of data": lambda: os.chmod(rows, 0o777),
            "mode of an open file": lambda: os.fchmod(os.open(rows, os.O_RDONLY), 0o777),
            "mode of a device": lambda: os.chmod("/dev/null", {stat.S_IMODE(null.st_mode)}),
            "device": lambda: Path("/dev/null").write_text("x"),
        }}""",
    )
    assert {name for name, succeeded in said.items() if succeeded} == {"device"}
    assert stat.S_IMODE((tried.home / "node/node.key").stat().st_mode) == 0o600


def test_a_task_in_a_sandbox_reaches_no_keyring_and_no_socket_beyond_its_namespaces(
    tried: Attempts,
) -> None:
    """A machine's host is reached by vsock past every network namespace, and a keyring may hold Kerberos tickets."""
    said = tried(
        """{
            "keyring": lambda: call(keyctl, 0, -3, 0),
            "key": lambda: call(add_key, b"user", b"cairn", b"x", 1, -3),
            "io_uring": lambda: call(425, 4, ctypes.create_string_buffer(256)),
            "vsock": lambda: socket.socket(40, socket.SOCK_STREAM).close(),
            "packet": lambda: socket.socket(17, socket.SOCK_RAW).close(),
            "alg": lambda: socket.socket(38, socket.SOCK_SEQPACKET).close(),
            "pair": lambda: [end.close() for end in socket.socketpair()],
        }""",
    )
    assert {name for name, succeeded in said.items() if succeeded} == {"pair"}


# In a process of its own, which would die with the memory.
SHRUNK = """
import sys
from pathlib import Path
from tests.hostile.test_task_and_kernel import shrink
shrink(Path(sys.argv[1]))
"""


def shrink(home: Path) -> None:
    (home / "task.py").write_text(
        "import cairn, os\n"
        "from torch import nn\n"
        "def model(): return nn.Linear(2, 1)\n"
        "def data(site): return cairn.Data(train=1, examples=5)\n"
        "def train(model, data, round):\n"
        "    for name in os.listdir('/proc/self/fd'):\n"
        "        try: os.ftruncate(int(name), 0)\n"
        "        except OSError: pass\n"
        "    return {}\n"
        "task = cairn.Task(model=model, data=data, train=train)\n"
    )
    source = TaskSource("toy", str(home / "task.py"), home / "data")
    torch.manual_seed(1)
    with closing(TrainingSupervisor("bob", source)) as process:
        process.base_buffer(SCHEMA)[:] = BASE
        print(len(bytes(process.run(Work("job", 1, "train", {}, SCHEMA)).payload)))  # noqa: T201 - for the test


def test_a_task_that_shrinks_the_memory_of_its_model_does_not_take_its_node_with_it(
    home: Path,
) -> None:
    (home / "node.py").write_text(SHRUNK)
    ran = run([home / "node.py", home])
    assert ran.returncode != -signal.SIGBUS
    assert (ran.returncode, ran.stdout.decode()) == (0, f"{len(BASE)}\n"), ran.stderr.decode()


def test_whatever_a_task_leaves_in_its_directory_it_is_deleted(tmp_path: Path) -> None:
    """Deeper than a path may be long, without rights, and with links to what must stay."""
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "ledger").write_text("stays")
    place = furnish()
    within = os.open(place / "work", os.O_RDONLY)
    for _ in range(3000):
        os.symlink(kept, "link", dir_fd=within)
        os.mkdir("d", dir_fd=within)
        inner = os.open("d", os.O_RDONLY, dir_fd=within)
        os.close(within)
        within = inner
    os.mkdir("closed", 0o000, dir_fd=within)
    os.close(within)
    clear(place)
    assert not place.exists()
    assert (kept / "ledger").read_text() == "stays"


def test_a_process_that_cannot_be_started_leaves_no_directory(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (home / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(home / "tmp"))
    monkeypatch.setattr("sys.executable", str(home / "gone"))
    sandbox = Sandbox("landlock", ())
    source = TaskSource("toy", str(home / "task.py"), home / "data", sandbox=sandbox)
    with pytest.raises((OSError, TaskFailed)):
        TrainingSupervisor("bob", source).start()
    assert list((home / "tmp").iterdir()) == []


SHORT_OF_MEMORY = "/proc/self/oom_score_adj"


def test_a_machine_without_memory_ends_a_task_in_a_sandbox_before_its_node(tried: Attempts) -> None:
    of_the_node = int(Path(SHORT_OF_MEMORY).read_text())
    said = tried(
        f"""{{
            "at all": lambda: agree(int(Path("{SHORT_OF_MEMORY}").read_text()) > -1001),
            "before its node": lambda: agree(int(Path("{SHORT_OF_MEMORY}").read_text()) > {of_the_node}),
            "long after": lambda: agree(int(Path("{SHORT_OF_MEMORY}").read_text()) < -1000),
        }}"""
    )
    assert said == {"at all": 1, "before its node": 1, "long after": 0}


def test_a_machine_without_memory_ends_any_task_before_its_node(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("owner_node.training.child.subprocess", Subprocess(general))
    (home / "task.py").write_text(
        "import cairn\n"
        "from torch import nn\n"
        "def model(): return nn.Linear(2, 1)\n"
        "def data(site): return cairn.Data(train=1, examples=5)\n"
        "def train(model, data, round):\n"
        f"    return {{'of the task': float(open('{SHORT_OF_MEMORY}').read())}}\n"
        "task = cairn.Task(model=model, data=data, train=train)\n"
    )
    source = TaskSource("toy", str(home / "task.py"), home / "data")
    with closing(TrainingSupervisor("bob", source)) as process:
        process.base_buffer(SCHEMA)[:] = BASE
        said = process.run(Work("job", 1, "train", {}, SCHEMA)).metrics
    assert said["of the task"] > int(Path(SHORT_OF_MEMORY).read_text())


def test_nothing_that_a_task_starts_in_namespaces_outlives_its_process_which_is_said_to_be_killed(
    home: Path,
) -> None:
    """In a session of its own it is in no group that the node could kill."""
    (home / "task.py").write_text(
        "import cairn, os, signal, sys\n"
        "from torch import nn\n"
        "def model(): return nn.Linear(2, 1)\n"
        "def data(site): return cairn.Data(train=1, examples=5)\n"
        "def train(model, data, round):\n"
        "    if round.number == 2:\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    read, write = os.pipe()\n"
        "    if os.fork() == 0:\n"
        "        os.setsid()\n"
        "        os.write(write, b'x')\n"
        f"        os.execv(sys.executable, [sys.executable, '-c', 'input()  # {home.name}'])\n"
        "    os.read(read, 1)\n"
        "    return {'processes seen': float(sum(name.isdigit() for name in os.listdir('/proc')))}\n"
        "task = cairn.Task(model=model, data=data, train=train)\n"
    )
    source = TaskSource(
        "toy", str(home / "task.py"), home / "data", sandbox=of_kind("namespaces", home)
    )
    with closing(TrainingSupervisor("bob", source)) as process:
        process.base_buffer(SCHEMA)[:] = BASE
        said = process.run(Work("job", 1, "train", {}, SCHEMA)).metrics
        assert said["processes seen"] == 3
        with pytest.raises(TaskFailed, match="was killed by SIGKILL"):
            process.run(Work("job", 2, "train", {}, SCHEMA))
        until(lambda: not lives(home), "what the task started is gone with it")


def lives(home: Path) -> bool:
    """Whether the process that the task started is there."""
    return any(home.name in line and "input()" in line for line in command_lines())


def command_lines() -> list[str]:
    """Those of every process of this machine."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            found.append(path.read_bytes().decode(errors="replace"))
    return found


# In a process of its own, whose standard error is a log.
LOGGED = """
import sys
from pathlib import Path
from owner_node.sandbox.choice import Sandbox
from tests.hostile.test_task_and_kernel import BASE, SCHEMA, TaskSource, TrainingSupervisor, Work, closing

home, kind, *reads = sys.argv[1:]
print("the node's first line", file=sys.stderr)
task = Path(home) / "task.py"
source = TaskSource("toy", str(task), task.parent / "data", sandbox=Sandbox(kind, tuple(reads)))
with closing(TrainingSupervisor("bob", source)) as process:
    process.base_buffer(SCHEMA)[:] = BASE
    process.run(Work("job", 1, "train", {}, SCHEMA))
print("the node's last line", file=sys.stderr)
"""


@each_kind
def test_a_task_in_a_sandbox_prints_into_its_nodes_log_and_neither_reads_nor_cuts_it(
    home: Path, kind: Kind
) -> None:
    (home / "task.py").write_text(
        "import cairn, fcntl, os, sys\n"
        "from torch import nn\n"
        "def model(): return nn.Linear(2, 1)\n"
        "def data(site): return cairn.Data(train=1, examples=5)\n"
        "def tried(attempt):\n"
        "    try: return bool(attempt())\n"
        "    except OSError: return False\n"
        "def reopened():\n"
        "    return os.read(os.open('/proc/self/fd/2', os.O_RDONLY | os.O_NONBLOCK), 9)\n"
        "def train(model, data, round):\n"
        "    read = [tried(lambda: os.pread(2, 9, 0)), tried(reopened)]\n"
        "    tried(lambda: os.ftruncate(2, 0))\n"
        "    tried(lambda: os.pwrite(2, b'forged', 0))\n"
        "    print('the task read:', read, file=sys.stderr)\n"
        "    return {}\n"
        "task = cairn.Task(model=model, data=data, train=train)\n"
    )
    sandbox = of_kind(kind, home)
    (home / "node.py").write_text(LOGGED)
    ran = run([home / "node.py", home, kind, *sandbox.reads])
    assert ran.returncode == 0
    assert ran.stderr.decode().splitlines() == [
        "the node's first line",
        "the task read: [False, False]",
        "the node's last line",
    ]
