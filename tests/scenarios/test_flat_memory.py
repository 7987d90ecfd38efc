"""The aggregator's memory does not grow with the number of owners: real processes, and its own peak."""

import re
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from tests.scenarios.federation import Federation

ELEMENTS = 10_000_000
MODEL = 4 * ELEMENTS  # bytes; so many that two updates are under way at a time
ROUNDS = 2
OWNERS = ("alice", "bob", "carol", "dave", "erin", "frank")

# Adds this owner's own value to a model that is one constant.
TASK = f"""
import torch
from torch import nn

import cairn


class Constant(nn.Module):
    def __init__(self):
        super().__init__()
        self.values = nn.Parameter(torch.zeros({ELEMENTS}))


def model():
    return Constant()


def data(site):
    return cairn.Data(train=float((site.data / "value").read_text()), examples=1)


def train(model, data, round):
    with torch.no_grad():
        model.values += data.train
    return {{}}


task = cairn.Task(model=model, data=data, train=train)
"""


def peak_bytes(pid: int) -> int:
    """The most that was ever resident of a process."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    found = re.search(r"^VmHWM:\s+(\d+) kB$", status, re.MULTILINE)
    assert found
    return int(found[1]) << 10


def peak_after_rounds_of(home: Path, owners: tuple[str, ...]) -> int:
    """The peak of the aggregator of so many owners, whose model must come out as it should."""
    home.mkdir()
    federation = Federation(home, {owner: 2.0**k for k, owner in enumerate(owners)}, floor=2)
    try:
        (home / "task.py").write_text(TASK)
        save_file({"values": torch.zeros(ELEMENTS)}, home / "initial.safetensors")
        aggregator = federation.aggregator()
        federation.owners()
        coordinator = federation.coordinator(rounds=ROUNDS)
        assert coordinator.ends() == 0, coordinator.output()
        assert [line["contributors"] for line in federation.history()] == [len(owners)] * ROUNDS
        model = load_file(federation.out / "model.safetensors")["values"]
        added = torch.tensor((2.0 ** len(owners) - 1) / len(owners))
        assert torch.equal(model, (added + added).expand(ELEMENTS))
        return peak_bytes(aggregator.pid)
    finally:
        federation.close()


def test_four_more_owners_take_less_memory_than_two_more_updates(tmp_path: Path) -> None:
    """Each connection has some megabytes of its own, and what arrives for it; no owner has an update."""
    few = peak_after_rounds_of(tmp_path / "few", OWNERS[:2])
    many = peak_after_rounds_of(tmp_path / "many", OWNERS)
    assert many - few < 2 * MODEL, f"{few >> 20} MiB with 2 owners, {many >> 20} MiB with 6"
