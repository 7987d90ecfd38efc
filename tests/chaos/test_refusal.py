"""A failpoint that was left behind in the environment keeps a node from starting, and touches nothing."""

from pathlib import Path

import pytest

from cairn.runtime.failpoints import NAMES
from tests.scenarios.federation import Federation
from tests.scenarios.processes import Node
from tests.warm.start import BIN

COMMANDS = {
    "aggregator": ("aggregator-node", "--config", "aggregator.toml"),
    "alice": ("owner-node", "--config", "alice.toml"),
    "coordinator": ("coordinator", "run", "job.toml", "--config", "coordinator.toml"),
}
JOB = """
name = "halving"
task = "halving"
model = "../initial.safetensors"
rounds = 1
owners = ["alice", "bob"]
floor = 2
"""


@pytest.mark.parametrize("permitted", ["", "another"])
@pytest.mark.parametrize("node", COMMANDS)
def test_a_node_does_not_start_with_a_failpoint_outside_a_federation_for_tests(
    node: str, permitted: str, tmp_path: Path
) -> None:
    federation = Federation(tmp_path, {"alice": 1.0, "bob": -0.3}, floor=2)
    (federation.files / "job.toml").write_text(JOB)
    program, *arguments = COMMANDS[node]
    arguments = [str(federation.files / a) if a.endswith(".toml") else a for a in arguments]
    arguments += ["--out", str(federation.out)] if node == "coordinator" else []
    environment = {"CAIRN_FAILPOINTS": f"{NAMES[0]}=kill", "CAIRN_FAILPOINTS_IN": permitted}
    started = Node(node, tmp_path / "log", BIN / program, *arguments, **environment)
    assert started.ends() == 2
    assert "error: CAIRN_FAILPOINTS is set: it makes nodes fail on purpose" in started.output()
    assert not (federation.files / node / "state").exists()
    assert not federation.out.exists()
