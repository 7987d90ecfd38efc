"""FedBN: the BatchNorm layers of each owner stay and last, in a federation of real processes.

What comes out is compared with plain PyTorch in one process, in which every owner has a model of its own and only
the shared layer is averaged. Beside its norm each owner keeps random bytes of its own, which are searched for
wherever they must not be.
"""

import os
from collections.abc import Callable, Iterable

import numpy as np
import torch
from click.testing import CliRunner
from safetensors.torch import load_file
from torch import nn

from cairn.cli.reset import reset
from cairn.ledger.files import read_ledger
from tests.hostile.memory import in_files, in_memory, may_read
from tests.scenarios.federation import Federation
from tests.scenarios.processes import Node

MakeFederation = Callable[..., Federation]

THREE = {"alice": 1.0, "bob": -0.3, "carol": 4.0}
ROUNDS = 3
LEASE = 60  # seconds: an owner that is started again has its place still

TASK = """
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn

import cairn


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(2)
        self.layer = nn.Linear(2, 1)
        self.register_buffer("own", torch.zeros(8))


def model():
    return Model()


def rows(value):
    return torch.arange(8.0).reshape(4, 2).sin() * value + value


def data(site):
    return cairn.Data(train=site.data, examples=1, test=site.data, test_examples=1)


def step(model, value):
    loss = model.layer(model.norm(rows(value))).square().mean()
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    with torch.no_grad():
        for parameter, gradient in zip(model.parameters(), gradients):
            parameter -= 0.25 * gradient


def train(model, data, round):
    gate = data.train / f"round-{round.number}"
    if gate.exists():
        gate.read_bytes()
    step(model, float((data.train / "value").read_text()))
    model.own.copy_(torch.from_numpy(np.fromfile(data.train / "canary", "<f4")))


def evaluate(model, data, round):
    save_file(model.state_dict(), data.test / f"{round.job}-{round.number}.safetensors")


task = cairn.Task(model=model, data=data, train=train, evaluate=evaluate, keeps=("norm.*", "own"))
"""


def expected(owners: Iterable[str], rounds: int, seed: int) -> dict[str, dict[str, torch.Tensor]]:
    """What each owner evaluates after so many rounds, by plain PyTorch and NumPy's mean."""
    scope: dict[str, object] = {"__name__": "task", "__file__": "task.py"}
    exec(TASK, scope)  # noqa: S102 - the text above
    build, step = scope["model"], scope["step"]
    assert callable(build)
    assert callable(step)
    torch.manual_seed(seed)
    first: nn.Module = build()
    models: dict[str, nn.Module] = {owner: build() for owner in owners}
    shared = {n: v for n, v in first.state_dict().items() if n.startswith("layer.")}
    for model in models.values():
        model.load_state_dict(shared, strict=False)
    for _ in range(rounds):
        for owner, model in models.items():
            step(model.train(), THREE[owner])
        for name in shared:
            values = np.array([m.state_dict()[name].numpy() for m in models.values()], "<f8")
            mean = torch.from_numpy((values.sum(0) / len(models)).astype("<f4"))
            for model in models.values():
                model.load_state_dict({name: mean}, strict=False)
    return {owner: model.state_dict() for owner, model in models.items()}


def check_evaluated(
    federation: Federation, job: str, number: int, states: dict[str, dict[str, torch.Tensor]]
) -> None:
    for owner, state in states.items():
        found = load_file(federation.home / "data" / owner / f"{job}-{number}.safetensors")
        canary = np.fromfile(federation.home / "data" / owner / "canary", "<f4")
        wanted = {**state, "own": torch.from_numpy(canary)}
        assert found.keys() == wanted.keys()
        for name, values in wanted.items():
            torch.testing.assert_close(found[name], values, rtol=1e-4, atol=1e-5)


def test_norms_that_are_kept_go_on_at_their_owner_and_nothing_of_them_is_anywhere_else(
    federate: MakeFederation,
) -> None:
    federation = federate(THREE, floor=3, lease_seconds=LEASE)
    (federation.home / "task.py").write_text(TASK)
    canaries = {}
    for owner in THREE:
        values = np.frombuffer(os.urandom(32), "<u4") & 0x807F_FFFF | 0x3C80_0000
        canaries[owner] = values.tobytes()
        (federation.home / "data" / owner / "canary").write_bytes(canaries[owner])
        federation.edit(owner, "max_failures = 1000", "max_failures = 1")
    aggregator = federation.aggregator()
    federation.gate("bob", 2)
    federation.gate("alice", 3)
    owners = federation.owners()
    coordinator = federation.coordinator(
        model="task.py", seed=5, rounds=ROUNDS, floor=3, evaluate=True
    )
    with federation.held("bob", 2):  # it dies in its training, and trains again from what it kept
        owners["bob"].kill()
        owners["bob"] = federation.owner("bob")
    with federation.held("alice", 3):
        for node in (aggregator, coordinator):
            if may_read(node.pid):
                assert in_memory(node.pid, canaries) == {}, node.name
    assert coordinator.ends() == 0, coordinator.output()
    assert [line["contributors"] for line in federation.history()] == [3] * ROUNDS
    check_evaluated(federation, "halving", ROUNDS, expected(THREE, ROUNDS, seed=5))

    elsewhere = [
        federation.out,
        federation.files / "aggregator",
        *(n.log for n in federation.nodes),
    ]
    assert in_files(elsewhere, canaries) == {}
    for owner in THREE:
        state = federation.files / owner / "state"
        assert in_files([state], canaries).keys() == {owner}
        assert in_files([path for path in state.iterdir() if path.name != "kept"], canaries) == {}
        assert len([*(state / "kept").iterdir()]) <= 2

    drop_and_go_on(federation, owners)


def drop_and_go_on(federation: Federation, owners: dict[str, Node]) -> None:
    """What was kept is dropped by a command, and another job begins without it, and without the first's."""
    for name in THREE:
        owners[name].kill()
    command = ["--kept", str(federation.files / "bob.toml"), "halving"]
    result = CliRunner().invoke(reset, command)
    assert result.exit_code == 0, result.output
    assert not [*(federation.files / "bob/state/kept").iterdir()]
    assert [*(federation.files / "alice/state/kept").iterdir()]
    federation.owners()
    federation.out = federation.home / "again"
    second = federation.coordinator(
        name="again", model="task.py", seed=6, rounds=1, floor=3, evaluate=True
    )
    assert second.ends() == 0, second.output()
    check_evaluated(federation, "again", 1, expected(THREE, 1, seed=6))
    for owner in THREE:
        ledger = [*read_ledger(federation.files / owner / "state/owner.sqlite")]
        assert "reset" not in [entry.kind for entry in ledger]
        assert [e for e in ledger if e.kind == "declined" and e.facts["reason"] != "STOPPING"] == []
