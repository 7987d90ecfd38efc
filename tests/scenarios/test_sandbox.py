"""Owners whose files say `sandbox = "on"`: real nodes, whose tasks try to open what is the node's own."""

from collections.abc import Callable

import pytest
from safetensors.numpy import load_file

from cairn.errors import UsageError
from cairn.ledger.files import read_ledger
from owner_node.sandbox.choice import sandbox_for
from tests.scenarios.federation import TASK, Federation
from tests.scenarios.processes import children_of, tcp_sockets_of

MakeFederation = Callable[..., Federation]
TWO = {"alice": 1.0, "bob": -0.3}
WRITES_INTO_DATA = """    with (data.train / "runs").open("a") as runs:
        runs.write(f"{round.number}\\n")
"""
TRIES_TO_LEAVE = """    import socket
    for attempt in (
        lambda: open({key!r}),
        lambda: os.listdir({state!r}),
        lambda: open(f"/proc/{{os.getppid()}}/environ", "rb").read(),
        lambda: socket.create_connection(("127.0.0.1", {port}), 5),
    ):
        try:
            attempt()
        except OSError:
            continue
        raise RuntimeError("the task got out")
"""
# How often it was trained, which a task in a sandbox cannot write down anywhere itself.
KEEPS = {
    "return nn.Linear(2, 1)": "layer = nn.Linear(2, 1)\n    layer.register_buffer('trained', torch.zeros(1))\n    return layer",
    "    with torch.no_grad():\n": "    model.trained += 1\n    with torch.no_grad():\n",
    "train=train)": "train=train, keeps=('trained',))",
}


@pytest.fixture
def federation(federate: MakeFederation) -> Federation:
    federation = federate(TWO)
    try:
        sandbox_for("task.py", federation.home, [])
    except UsageError as error:
        pytest.skip(str(error))
    alice = federation.files / "alice"
    port = (federation.files / "alice.toml").read_text().split('aggregator = "localhost:')[1]
    tries = TRIES_TO_LEAVE.format(
        key=str(alice / "node.key"), state=str(alice / "state"), port=int(port.split('"')[0])
    )
    task = TASK
    for old, new in ((WRITES_INTO_DATA, tries), *KEEPS.items()):
        assert old in task
        task = task.replace(old, new)
    (federation.home / "task.py").write_text(task)
    for owner in TWO:
        federation.edit(owner, "[tasks.halving]\n", '[tasks.halving]\nsandbox = "on"\n')
    return federation


def test_owners_train_in_their_sandboxes_and_the_model_is_the_same_bit_by_bit(
    federation: Federation,
) -> None:
    federation.aggregator()
    owners = federation.owners()
    assert federation.coordinator(rounds=3).ends() == 0
    federation.check_model(*[["alice", "bob"]] * 3)
    for name, owner in owners.items():
        ledger = read_ledger(federation.files / name / "state/owner.sqlite")
        last = [entry.facts["manifest_digest"] for entry in ledger if entry.kind == "sent"][-1]
        (path,) = (federation.files / name / "state/kept").glob(f"{last}.*.safetensors")
        kept = load_file(path)
        assert kept["trained"].tolist() == [3]
        (training,) = children_of(owner.pid)
        assert tcp_sockets_of(training) == []
        assert "Traceback" not in owner.output()


def test_a_task_that_may_read_the_nodes_key_keeps_the_node_from_starting(
    federation: Federation,
) -> None:
    federation.edit("alice", 'sandbox = "on"\n', 'sandbox = "on"\nsandbox_reads = ["alice"]\n')
    alice = federation.owner("alice")
    assert alice.ends() == 2
    assert "tasks.halving.sandbox: " in alice.output()
    assert "node.key lies in" in alice.output()
    assert "Traceback" not in alice.output()
