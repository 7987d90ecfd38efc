"""Where secrets are not: on a command line, in an environment, in a file that others can read."""

from collections.abc import Callable
from pathlib import Path

from tests.scenarios.federation import Federation
from tests.scenarios.processes import descendants_of

MakeFederation = Callable[..., Federation]

TWO = {"alice": 1.0, "bob": -0.3}


def secrets_of(files: Path) -> dict[Path, list[bytes]]:
    """The lines of every private key of the federation."""
    keys = [*files.rglob("*.key")]
    return {
        key: [line for line in key.read_bytes().splitlines() if line and not line.startswith(b"-")]
        for key in keys
    }


def test_no_key_is_on_a_command_line_or_in_an_environment_and_only_its_account_can_read_one(
    federate: MakeFederation,
) -> None:
    federation = federate(TWO)
    federation.gate("bob", 1)
    nodes = [federation.aggregator(), *federation.owners().values()]
    nodes.append(federation.coordinator(rounds=1))
    secrets = secrets_of(federation.files)
    assert len(secrets) >= 2 + len(TWO) + 2  # of each node, the authority's and the one that signs
    with federation.held("bob", 1):
        for pid in [p for node in nodes for p in (node.pid, *descendants_of(node.pid))]:
            shown = Path(f"/proc/{pid}/cmdline").read_bytes()
            shown += Path(f"/proc/{pid}/environ").read_bytes()
            for key, lines in secrets.items():
                assert not any(line in shown for line in lines), (pid, key)
    assert nodes[-1].ends() == 0
    states = [file for state in federation.files.rglob("state") for file in state.rglob("*")]
    for path in (*secrets, *states):
        assert path.stat().st_mode & 0o077 == 0, path
