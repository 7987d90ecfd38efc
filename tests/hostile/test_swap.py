"""A coordinator cannot tell which owner has which data: exchanged, all that it receives stays the same.

Two runs of one job, with the same keys and with the states emptied in between; in the second, alice has
bob's data, his number of examples and his metric, and bob has hers. What the coordinator receives is
recorded where gRPC hands it over, and compared message by message: sender, type, size, order, bytes.

Masked, because they differ between any two runs of the same data (every one keeps its size, and a list
its length):
  * RoundManifest.nonce: random. deadline_unix_ms: a time.
  * ReleaseStatement.sealed_unix_ms and `unix_ms` in an entry of the ledger: times.
  * ReleaseStatement.commitments: digests of receipts, each of which holds 32 random bytes.
  * manifest_digest, statement_digest, ledger heads: digests over the above.
  * Signed.signature: over the above.
Not masked: the digests of bases and releases, counts, metrics, exclusions, and every byte of an average.
Left out, because timing decides how often it comes: WatchRoundResponse of the state SEALED, which a watcher
sees or misses; an owner's call of Health, with an empty message, until the coordinator listens; the
text that the coordinator's own gRPC gives to a call that the coordinator has dropped.
Messages of the aggregator and of the owners are compared in order, each apart: which of two senders is
first is timing as well.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from google.protobuf import descriptor_pool, message_factory
from google.protobuf.message import Message
from safetensors.torch import load_file, save_file

from cairn.v1 import aggregator_pb2
from tests.hostile.recorded import Received, RecordedFederation

# Small multiples of a power of two: no sum of them rounds, so none depends on its order.
DATA = {"alice": (1.25, 3), "bob": (-0.5, 5), "carol": (2.0, 8)}

TASK = """
import json

import torch
from torch import nn

import cairn


def model():
    return nn.Linear(3, 1)


def data(site):
    value, examples = json.loads((site.data / "owned.json").read_text())
    return cairn.Data(train=value, examples=examples)


def train(model, data, round):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.5).add_(data.train)
    return {"value": data.train}


task = cairn.Task(model=model, data=data, train=train)
"""

_MASKED = {
    "RoundManifest": {"nonce", "deadline_unix_ms", "ledger_head"},
    "ReleaseStatement": {"manifest_digest", "sealed_unix_ms", "ledger_head", "commitments"},
    "LedgerHead": {"head"},
    "LedgerEntry": {"head"},
    "Signed": {"signature"},
}
_MASKED_FACTS = {"unix_ms", "manifest_digest", "statement_digest"}


class Swapped(RecordedFederation):
    """Three owners, whose data can be exchanged between two runs."""

    def __init__(self, home: Path) -> None:
        super().__init__(home, dict.fromkeys(DATA, 0.0), TASK)
        save_file(
            {"weight": torch.zeros(1, 3), "bias": torch.zeros(1)}, home / "initial.safetensors"
        )

    def run(self, data: dict[str, tuple[float, int]]) -> list[Received]:
        """Run the job of two rounds, with these values and numbers of examples; what was received."""
        for owner, owned in data.items():
            (self.home / "data" / owner / "owned.json").write_text(json.dumps(owned))
        self.aggregator()
        coordinator = self.coordinator(
            rounds=2, floor=3, weighting="examples", examples=[1, 100], settings={"lr": 0.5}
        )
        self.owners()
        self.job_ends(coordinator)
        self.let_go(coordinator)
        self.close()
        return list(self.received())

    def forget(self) -> None:
        """Empty everything that the run has left; keys, certificates and addresses stay."""
        for node in ("aggregator", *DATA):
            shutil.rmtree(self.files / node / "state")
        shutil.rmtree(self.out)
        shutil.rmtree(self.record)
        self.record.mkdir()
        for started in self.nodes:
            started.log.unlink(missing_ok=True)


def test_alices_and_bobs_data_exchanged_give_the_coordinator_the_same_transcript(
    tmp_path: Path,
) -> None:
    federation = Swapped(tmp_path)
    first = federation.run(DATA)
    model = load_file(federation.out / "model.safetensors")
    federation.forget()
    swapped = federation.run(DATA | {"alice": DATA["bob"], "bob": DATA["alice"]})
    for name, tensor in load_file(federation.out / "model.safetensors").items():
        assert tensor.numpy().tobytes() == model[name].numpy().tobytes()
    assert kinds(first) == kinds(swapped)
    assert transcript(first) == transcript(swapped)
    # What is masked is all that differs, and what is not masked tells data apart.
    assert [part.value for part in first] != [part.value for part in swapped]
    federation.forget()
    other = federation.run(DATA | {"alice": (1.5, 3)})
    assert kinds(first) == kinds(other)
    differing = {
        kind
        for (_, kind, size, value), there in zip(transcript(first), transcript(other), strict=True)
        if (size, value) != there[2:]
    }
    assert "cairn.v1.CollectReleaseResponse" in differing


def kinds(received: list[Received]) -> list[tuple[str, str]]:
    """Who sent what, in order."""
    return [(sender, kind) for sender, kind, _, _ in transcript(received)]


def transcript(received: list[Received]) -> list[tuple[str, str, int, bytes]]:
    """Sender, type, size and masked bytes: of the aggregator, then of the owners."""
    seen = [part for part in received if not _is_chance(part)]
    lines = [(part.sender, part.kind, len(part.value), masked(part)) for part in seen]
    return sorted(lines, key=lambda line: (line[0], line[1].startswith("metadata")))


def masked(part: Received) -> bytes:
    """The bytes of a part, with what is masked set to zero, in its size."""
    if not part.kind.startswith("cairn.v1."):
        return part.value
    return _parsed(part.kind, part.value, _mask).SerializeToString(deterministic=True)


def _parsed(name: str, value: bytes, change: Callable[[Message], None]) -> Message:
    kind = descriptor_pool.Default().FindMessageTypeByName(name)
    message = message_factory.GetMessageClass(kind)()
    message.ParseFromString(value)
    change(message)
    return message


def _mask(message: Any) -> None:
    name = message.DESCRIPTOR.name
    if name == "Signed":
        message.body = _parsed(message.type, message.body, _mask).SerializeToString(
            deterministic=True
        )
    if name == "LedgerEntry":
        facts = json.loads(message.body)
        zeros = {key: "0" * len(str(facts[key])) for key in _MASKED_FACTS & facts.keys()}
        message.body = json.dumps(facts | zeros).encode()
    for field, value in message.ListFields():
        if field.name in _MASKED.get(name, ()):
            _set_to_zero(message, field.name, value)
        elif field.message_type is not None and not field.message_type.GetOptions().map_entry:
            for inner in value if field.is_repeated else [value]:
                _mask(inner)


def _set_to_zero(message: Any, field: str, value: Any) -> None:
    if isinstance(value, bytes):
        setattr(message, field, bytes(len(value)))
    elif isinstance(value, int):
        setattr(message, field, 0)
    else:
        value[:] = [bytes(len(item)) for item in value]


def _is_chance(part: Received) -> bool:
    if part.kind == "cairn.v1.WatchRoundResponse":
        state = aggregator_pb2.WatchRoundResponse.FromString(part.value).state
        return state == aggregator_pb2.ROUND_STATE_SEALED
    if part.kind == "details":
        return b"Cancelled upon garbage collection" in part.value
    return (part.kind, part.value) == ("request", b"") or "grpc.health" in part.kind
