"""A coordinator holds nothing of one owner's update, and an aggregator nothing once the round is over.

Each owner's update is a random pattern of 32 bytes, eight small float32 values, over and over in a tensor
of a MiB and once in a small one. It is searched for as it is, in binary64, as the sum of any two owners'
patterns in either, and as the digest of the update; the owner's metric as its eight bytes. The controls
find what must be there by the same search: the patterns in the aggregator before the seal, and the
average in everything of the coordinator.
"""

import itertools
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file

from tests.hostile.memory import files_held, in_core_dump, in_files, in_memory, may_read
from tests.hostile.recorded import RecordedFederation
from tests.scenarios.processes import Node, until

OWNERS = ("alice", "bob", "carol")
REPEATS = 1 << 15  # of 32 bytes: a MiB

TASK = f"""
import numpy as np
import torch
from torch import nn

import cairn


class Canary(nn.Module):
    def __init__(self):
        super().__init__()
        self.large = nn.Parameter(torch.zeros({REPEATS}, 8))
        self.small = nn.Parameter(torch.zeros(8))


def model():
    return Canary()


def data(site):
    return cairn.Data(train=site.data, examples=1)


def train(model, data, round):
    gate = data.train / f"round-{{round.number}}"
    if gate.exists():
        gate.read_bytes()
    pattern = torch.from_numpy(np.fromfile(data.train / f"pattern-{{round.number}}", "<f4"))
    with torch.no_grad():
        model.large.copy_(pattern.expand_as(model.large))
        model.small.copy_(pattern)
    return {{"value": float((data.train / "value").read_text())}}


task = cairn.Task(model=model, data=data, train=train)
"""

Pattern = NDArray[np.float32]


class Canary(RecordedFederation):
    """Three owners, and the pattern of each in each of two rounds."""

    def __init__(self, home: Path) -> None:
        # An owner's metric: as many random bits as a double below 1 has.
        super().__init__(home, {owner: secrets.randbits(53) / 2**53 for owner in OWNERS}, TASK)
        zeros = {"large": torch.zeros(REPEATS, 8), "small": torch.zeros(8)}
        save_file(zeros, home / "initial.safetensors")
        self.patterns: dict[int, dict[str, Pattern]] = {
            number: {owner: a_pattern() for owner in OWNERS} for number in (1, 2)
        }
        for number, patterns in self.patterns.items():
            for owner, pattern in patterns.items():
                pattern.tofile(home / "data" / owner / f"pattern-{number}")

    def of_updates(self, *numbers: int) -> dict[str, bytes]:
        """What must not outlive these rounds: the updates, and the sums of fewer than all."""
        needles = {}
        for number in numbers:
            for size in range(1, len(OWNERS)):
                for owners in itertools.combinations(OWNERS, size):
                    total = sum((np.float64(self.patterns[number][o]) for o in owners), np.zeros(8))
                    name = f"{'+'.join(owners)} of round {number}"
                    needles[f"{name} in binary32"] = total.astype("<f4").tobytes()
                    needles[f"{name} in binary64"] = total.astype("<f8").tobytes()
        return needles

    def of_owners(self) -> dict[str, bytes]:
        """What a coordinator must not have beside: the digests of updates, and single metrics."""
        needles = {o: np.float64(v).tobytes() for o, v in self.values.items()}
        for node in self.nodes:
            if node.name in OWNERS:
                for entry in node.events("update accepted"):
                    name = f"digest of {node.name}'s round {entry['round']}"
                    needles[name] = bytes.fromhex(entry["digest"])
                    needles[f"{name} as text"] = entry["digest"].encode()
        assert len(needles) == 3 + 2 * 3 * 2
        return needles

    def average(self, number: int) -> dict[str, bytes]:
        total = sum((np.float64(p) for p in self.patterns[number].values()), np.zeros(8))
        return {f"average of round {number}": (total / len(OWNERS)).astype("<f4").tobytes()}


def a_pattern() -> Pattern:
    """Eight finite values between 2**-6 and 2**-5, of either sign, with random digits."""
    bits = np.frombuffer(os.urandom(32), "<u4")
    return ((bits & 0x807F_FFFF) | 0x3C80_0000).view("<f4")


def erased(aggregator: Node, needles: Mapping[str, bytes]) -> None:
    """Wait until the aggregator's memory has none of it; fail, and name what is left, where it stays.

    gRPC keeps the last 8 KiB that came over a connection in the buffer it decrypts into, as long as the
    connection lasts; an idle one is ended after two seconds, or four at the latest.
    """
    left: list[str] = []

    def gone() -> bool:
        left[:] = [f"{name}: {where}" for name, where in in_memory(aggregator.pid, needles).items()]
        return not left

    with suppress(AssertionError):
        until(gone, "the updates are erased", 10)
    assert left == []


@pytest.fixture
def canary(tmp_path: Path) -> Iterator[Canary]:
    federation = Canary(tmp_path)
    yield federation
    federation.close()


def test_no_update_reaches_a_coordinator_or_outlives_its_round_in_the_aggregator(
    canary: Canary, tmp_path: Path
) -> None:
    gates = [(owner, 2) for owner in OWNERS]
    for owner, number in [("bob", 1), *gates]:
        canary.gate(owner, number)
    aggregator = canary.aggregator()
    if not may_read(aggregator.pid):
        pytest.skip("this account may not read the memory of its own processes; root may")
    owners = canary.owners()
    coordinator = canary.coordinator(rounds=2, floor=3, settings={"lr": 0.5})
    with canary.held("bob", 1):
        for owner in ("alice", "carol"):
            owners[owner].says("update accepted")
        held = in_memory(aggregator.pid, canary.of_updates(1))
        assert "alice+carol of round 1 in binary64" in held  # the sum, so far
        buffered = {f"{owner} of round 1 in binary32" for owner in ("alice", "carol")}
        assert held.keys() & buffered  # in the buffer of the last push
        assert not [name for name in held if "bob" in name]
    with ExitStack() as trainings:
        for gate in gates:  # round 1 is released, and nobody has pushed in round 2
            trainings.enter_context(canary.held(*gate))
        erased(aggregator, canary.of_updates(1))
    canary.job_ends(coordinator)
    assert [line["contributors"] for line in canary.history()] == [3, 3]
    assert all(owner.process.poll() is None for owner in owners.values())

    updates = canary.of_updates(1, 2)
    erased(aggregator, updates)
    kept = [canary.files / "aggregator", aggregator.log, *files_held(aggregator.pid)]
    assert in_files(kept, updates) == {}
    assert in_files(kept, canary.average(2)) != {}

    secret, average = updates | canary.of_owners(), canary.average(2)
    disk = [canary.files / "coordinator", canary.out, coordinator.log]
    received = tmp_path / "messages"
    received.write_bytes(b"\n".join(part.value for part in canary.received()))
    assert in_files(files_held(coordinator.pid), secret) == {}
    dumped = in_core_dump(coordinator.pid, tmp_path, secret | average)
    for found in (dumped, in_files(disk, secret | average), in_files([received], secret | average)):
        assert found.keys() == average.keys()
    canary.let_go(coordinator)
