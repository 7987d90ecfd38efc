"""The federation that is faulted again and again, with a container for each node.

Each node sees its own files and no other's, at the paths that they have outside, so that the tests read
what it left behind. A node that was killed is started again as an operator would do it: `docker start`.
"""

import itertools
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from ipaddress import ip_network
from itertools import islice
from pathlib import Path

from cairn.runtime.failpoints import ACTING, PERMITTING
from tests.chaos.marking import OWNERS, Table
from tests.chaos.stage import Stage
from tests.containers.compose import DOCKER, docker
from tests.scenarios.processes import Node, children_of

NODES = ("aggregator", *OWNERS, "coordinator")
IMAGES = dict.fromkeys(NODES, "cairn-node") | {"aggregator": "cairn-aggregator"}
PUSH_PORT = 7443
_ROUNDS = 3
ON_SMALL_DISKS = ("aggregator", "bob")
DISK_BYTES = 128 << 20
MEMORY_BYTES = 1 << 30  # of an owner, which takes about 400 MiB of them
_SECONDS = 60.0  # of one command of the engine
_MOST_RANGES = 10  # that are asked for before one is ours
# As docker-compose.yml hardens every node.
_HARDENED = ("--init", "--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges:true")
# What a node shall meet at its next start stands in a file: a container's environment cannot be changed.
_PROGRAM = ("sh", "-euc", 'set -a; . "$0"; exec "$@"')
_STARTED = itertools.count()


class Box(Node):
    """A container, from one start to its end, and what it prints meanwhile."""

    def __init__(self, name: str, log: Path, container: str) -> None:
        super().__init__(name, log, DOCKER, "start", "--attach", container)
        self.container = container
        self._pid = 0

    @property
    def pid(self) -> int:
        """The node's own process, as this machine numbers it; 0 where it is not there yet."""
        if not self._pid and self.process.poll() is None:
            init = int(docker("inspect", "--format={{.State.Pid}}", self.container))
            with suppress(FileNotFoundError, ProcessLookupError):  # it has ended meanwhile
                found = children_of(init) if init else []
                # Before the shell has become the node, it has read what the node shall meet.
                self._pid = found[0] if found and _is_node(found[0]) else 0
        return self._pid

    def send(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        docker("kill", self.container, seconds=_SECONDS)
        self.process.wait(_SECONDS)


class Boxes(Stage):
    """Owners and aggregator go on from job to job; each job has a coordinator of its own."""

    # Three of them must be longer than an owner takes to notice that a coordinator has moved, 10 seconds: after three
    # rounds without a release a job is given up.
    lease_seconds = 5
    # Longer than the aggregator waits for a push whose connection was reset at the owner's end only.
    round_deadline_seconds = 120
    most_restarts = 12
    patience_seconds = 240.0  # a busy machine may take a minute to import PyTorch four times

    def __init__(self, home: Path, table: Table) -> None:
        super().__init__(home, table)
        self.name = f"cairn-boxes-{os.getpid()}-{next(_STARTED)}"
        self._made: dict[str, str] = {}
        (home / "armed").mkdir()
        self._disks = [self.state_of(node) for node in ON_SMALL_DISKS]
        for disk in self._disks:
            disk.mkdir()
            _as_root("mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(disk))
        self._addresses_left = _network(self.name)

    def begin(
        self,
        faults: Mapping[str, str | Sequence[str]] | None = None,
        rounds: int = _ROUNDS,
        *,
        looks_for_best: bool = False,
    ) -> None:
        self._remove("coordinator")  # it is that of the last job
        super().begin(faults, rounds, looks_for_best=looks_for_best)

    def container(self, name: str) -> str:
        return self._made[name]

    @contextmanager
    def paused(self, name: str) -> Iterator[None]:
        """Inside, no process of the node's container runs."""
        docker("pause", self.container(name))
        try:
            yield
        finally:
            docker("unpause", self.container(name))

    @contextmanager
    def disconnected(self, name: str, *, moved: bool = False) -> Iterator[None]:
        """Inside, the node is in no network; afterwards it is, under another address if it has `moved`."""
        docker("network", "disconnect", self.name, self.container(name))
        try:
            yield
        finally:
            address = [f"--ip={next(self._addresses_left)}"] if moved else []
            docker("network", "connect", "--alias", name, *address, self.name, self.container(name))

    def in_network_of(self, name: str, *command: str) -> str:
        """Run a command of this machine in the network of a node."""
        pid = str(self.running[name].pid)
        return _as_root("nsenter", "--target", pid, "--net", *command)

    @contextmanager
    def disk_full(self, name: str) -> Iterator[None]:
        """Inside, the disk of a node in ON_SMALL_DISKS takes no byte more."""
        ballast = self.state_of(name) / "ballast"
        try:
            with ballast.open("wb", buffering=0) as file, suppress(OSError):
                while file.write(bytes(4096)):
                    pass
            yield
        finally:
            ballast.unlink()

    def close(self) -> None:
        self._remove(*self._made)
        super().close()
        while self._disks:  # a stage may be closed twice
            _as_root("umount", str(self._disks.pop()))
        subprocess.run([DOCKER, "network", "rm", self.name], check=False, capture_output=True)

    def _addresses(self) -> tuple[str, str, str]:
        return "coordinator:7441", f"aggregator:{PUSH_PORT}", "aggregator:7444"

    def _start(self, name: str, program: str | Path, *arguments: str) -> Node:
        armed = self.home / "armed" / name
        armed.write_text(f"{ACTING}={self._next_fault(name)}\n{PERMITTING}=ward\n")
        if name not in self._made:
            self._made[name] = self._create(name, *_PROGRAM, str(armed), str(program), *arguments)
        node = Box(name, self.home / f"{name}.log", self._made[name])
        self.nodes.append(node)
        self.running[name] = node
        return node

    def _create(self, name: str, *command: str) -> str:
        container = f"{self.name}-{name}"
        mounts = [f"--volume={path}:{path}" for path in self._visible_to(name)]
        settings = [
            f"--name={container}",
            f"--network={self.name}",
            f"--network-alias={name}",
            # Both the nodes and the tests read the files.
            f"--user={os.getuid()}:{os.getgid()}",
            "--tmpfs=/tmp:size=64m,mode=1777",
            "--env=CAIRN_LOG=json",
            "--env=OMP_NUM_THREADS=1",
        ]
        limits = [f"--memory={MEMORY_BYTES}"] if name in OWNERS else []
        docker("create", *_HARDENED, *settings, *limits, *mounts, IMAGES[name], *command)
        return container

    def _visible_to(self, name: str) -> list[Path]:
        files = [self.home / "armed" / name, self.files / f"{name}.toml", self.files / name]
        if name in OWNERS:
            files += [self.home / "task.py", self.home / "data" / name]
        if name == "coordinator":
            self.out.mkdir()
            files += [self.home / "job.toml", self.home / f"{self.job}.safetensors", self.out]
        return files

    def _remove(self, *names: str) -> None:
        made = [name for name in names if name in self._made]
        if made:
            containers = [self._made.pop(name) for name in made]
            docker("rm", "--force", *containers, seconds=_SECONDS)
        for name in made:
            if name in self.running:
                self.running[name].ends(_SECONDS)


def _network(name: str) -> Iterator[str]:
    """Make a network that leads nowhere; returns addresses in it that the engine gives to nobody by itself."""
    for _ in range(_MOST_RANGES):
        docker("network", "create", "--internal", name)  # the engine chooses a range that is free
        subnet = docker(
            "network", "inspect", "--format={{(index .IPAM.Config 0).Subnet}}", name
        ).strip()
        docker("network", "rm", name)
        with suppress(subprocess.CalledProcessError):  # another test has taken the range meanwhile
            # Only in a range that was asked for may we choose addresses.
            docker("network", "create", "--internal", f"--subnet={subnet}", name)
            hosts = list(islice(ip_network(subnet).hosts(), 200))
            return (str(address) for address in reversed(hosts))
    raise AssertionError("other tests take every range of addresses first")


def _as_root(program: str, *arguments: str) -> str:
    """Run a program of this machine that takes root, and return its output."""
    command = [shutil.which(program) or program, *arguments]
    return subprocess.check_output(command, text=True, timeout=_SECONDS)


def _is_node(pid: int) -> bool:
    return b"python" in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0]
