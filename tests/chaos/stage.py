"""A federation that is faulted again and again: a job for each fault, and a supervisor that restarts nodes."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from cairn.runtime.failpoints import ACTING, LOGGING, PERMITTING
from tests.chaos.marking import COLUMNS, OWNERS, Table
from tests.scenarios.federation import Federation
from tests.scenarios.processes import PATIENCE, Node, descendants_of, is_alive, until
from tests.warm.start import BIN

ROUNDS = 2
LEASE_SECONDS = 2
_MOST_RESTARTS = 3
_LAST_LINES = 12
_BEST = {"evaluate": True, "best.metric": "value", "best.better": "higher"}
TABLE = Table(rows=40, secret_floats=16)  # numbers may run ahead of the releases


class Stage(Federation):
    """Owners and aggregator go on from job to job; each job has a coordinator and a folder of its own."""

    lease_seconds = LEASE_SECONDS
    round_deadline_seconds = 30
    most_restarts = _MOST_RESTARTS  # beyond the faults that are planned
    rule: Mapping[str, object] = {}  # of every job: the plain mean
    patience_seconds = PATIENCE  # for owners to come and for a job to end

    def __init__(self, home: Path, table: Table = TABLE) -> None:
        super().__init__(home, OWNERS, floor=2, lease_seconds=self.lease_seconds)
        self._table = table
        (home / "task.py").write_text(table.task())
        self.secrets = {}
        for owner, column in COLUMNS.items():
            secret = np.random.default_rng(column).normal(size=table.secret_floats).astype("<f4")
            secret.tofile(home / "data" / owner / "secret")
            self.secrets[owner] = secret
        self.running: dict[str, Node] = {}
        self.restarts: list[tuple[str, int | None]] = []  # who had ended, and with which code
        self.job = ""
        self.is_broken = False  # something failed: what it left is no ground for another test
        self.jobs = 0
        self.rounds = ROUNDS
        self.looks_for_best = False
        self._armed: dict[str, list[str]] = {}  # for each start of a node, the first first
        self._planned = 0  # how many these are
        self._printed: dict[str, int] = {}

    @property
    def state(self) -> Path:
        return self.state_of("aggregator")

    @property
    def reached(self) -> list[str]:
        """The points that were reached by nodes that were started for this job."""
        log = self.home / f"{self.job}.reached"
        return log.read_text().splitlines() if log.exists() else []

    def state_of(self, node: str) -> Path:
        return self.files / node / "state"

    def begin(
        self,
        faults: Mapping[str, str | Sequence[str]] | None = None,
        rounds: int = ROUNDS,
        *,
        looks_for_best: bool = False,
    ) -> None:
        """Begin the next job, with these nodes started anew to meet a fault, or one after each of their starts."""
        self.jobs += 1
        self.restarts = []
        self.job = f"job-{self.jobs}"
        self.out = self.home / self.job
        self.rounds = rounds
        self.looks_for_best = looks_for_best
        self._armed = {
            name: [given] if isinstance(given, str) else list(given)
            for name, given in (faults or {}).items()
        }
        self._planned = sum(map(len, self._armed.values()))
        self._printed = {log.stem: log.stat().st_size for log in self.home.glob("*.log")}
        tensors = {name: torch.zeros(shape) for name, shape in self._table.shapes().items()}
        tensors["job"] = torch.tensor([float(self.jobs)])  # no two jobs have the same base
        save_file(tensors, self.home / f"{self.job}.safetensors")
        for name in ("aggregator", *OWNERS):
            node = self.running.get(name)
            if node is not None and name in self._armed:
                node.kill()
            if node is None or node.process.poll() is not None:
                self.start(name)
        self.start("coordinator")

    def start(self, name: str) -> None:
        if name == "aggregator":
            self._start(name, "aggregator-node", "--config", str(self.files / "aggregator.toml"))
        elif name == "coordinator":
            self.coordinator(
                name=self.job,
                model=f"{self.job}.safetensors",
                rounds=self.rounds,
                round_deadline_seconds=self.round_deadline_seconds,
                gather_seconds=int(self.patience_seconds),
                **(_BEST if self.looks_for_best else {}),
                **self.rule,
            )
        else:
            self.owner(name)

    def run_to_end(self) -> None:
        """Start anew whatever ends, until the coordinator has ended its job."""
        until(self.tend, f"{self.job} ends", self.patience_seconds)

    def tend(self) -> bool:
        """Start anew whatever has ended, as a supervisor would; returns whether the job is done."""
        for name, node in list(self.running.items()):
            code = node.process.poll()
            if code is None or (name == "coordinator" and code == 0):
                continue
            self.restarts.append((name, code))
            assert len(self.restarts) <= self.most_restarts + self._planned, (
                f"ended again and again: {self.restarts}"
            )
            self.start(name)
        return self.running["coordinator"].process.poll() == 0

    def await_stop(self, name: str) -> None:
        """Wait until a node is frozen, and then until the others went on or its lease has passed."""
        self.await_frozen(name)
        self.await_others(f"the others notice that {name} is frozen")

    def await_frozen(self, name: str) -> None:
        """Wait until a node has stopped at its failpoint."""
        until(
            lambda: is_frozen(self.running[name]) or self.tend(),
            f"{name} is stopped",
            self.patience_seconds,
        )
        assert is_frozen(self.running[name]), "the job was done before the point was reached"

    def await_others(self, what: str) -> None:
        """Wait until a round is released, or a lease has passed."""
        rounds, since = len(self.history()), time.monotonic()

        def others_went_on() -> bool:
            self.tend()
            passed = time.monotonic() - since
            return len(self.history()) > rounds or passed > 1.5 * self.lease_seconds

        until(others_went_on, what)

    def output_of(self, name: str) -> str:
        """What the node has printed since the job began, over all its starts."""
        return (self.home / f"{name}.log").read_bytes()[self._printed.get(name, 0) :].decode()

    def model(self, name: str = "model.safetensors") -> dict[str, np.ndarray]:
        return {k: v.numpy() for k, v in load_file(self.out / name).items()}

    @contextmanager
    def explained(self) -> Iterator[None]:
        """What fails inside tells the nodes' last lines, and the stage is not used again."""
        try:
            yield
        except BaseException as error:
            error.add_note(f"restarts: {self.restarts}")
            for log in sorted(self.home.glob("*.log")):
                lines = self.output_of(log.stem).splitlines()[-_LAST_LINES:]
                error.add_note("\n".join([f"--- {log.stem}", *lines]))
            self.is_broken = True
            raise

    @contextmanager
    def nothing_left_behind(self) -> Iterator[None]:
        """No process of a node that ended inside is there afterwards."""
        begun = list(self.running.values())
        children: dict[int, list[int]] = {}

        def look() -> None:
            for node in begun:
                if is_alive(node.pid):
                    children[node.pid] = descendants_of(node.pid)

        look()
        yield
        left = [c for node in begun if not is_alive(node.pid) for c in children.get(node.pid, [])]
        until(lambda: not any(map(is_alive, left)), "the children of what was killed are gone")

    def _next_fault(self, name: str) -> str:
        """What the node meets after this start; nothing where it has met all that was planned for it."""
        planned = self._armed.get(name)
        return planned.pop(0) if planned else ""

    def _start(self, name: str, program: str, *arguments: str) -> Node:
        environment = {
            PERMITTING: "ward",
            LOGGING: str(self.home / f"{self.job}.reached"),
            ACTING: self._next_fault(name),
        }
        node = Node(name, self.home / f"{name}.log", BIN / program, *arguments, **environment)
        self.nodes.append(node)
        self.running[name] = node
        return node


def is_frozen(node: Node) -> bool:
    """Whether it was stopped and not continued."""
    try:
        stat = Path(f"/proc/{node.pid}/stat").read_text()
    except FileNotFoundError:
        return False
    return stat.rpartition(")")[2].split()[0] == "T"
