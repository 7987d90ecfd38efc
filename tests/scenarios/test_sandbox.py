"""Owners whose files say `sandbox = "on"`: real nodes, whose tasks try to open what is the node's own."""

from collections.abc import Callable

import pytest

from cairn.errors import UsageError
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
    assert WRITES_INTO_DATA in TASK
    (federation.home / "task.py").write_text(TASK.replace(WRITES_INTO_DATA, tries))
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
    for owner in owners.values():
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
