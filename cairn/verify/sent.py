"""What an owner's ledger says was sent, and whether a signed receipt is for it. Pure."""

import json
from collections.abc import Mapping
from typing import Any

from cairn.errors import InvalidMessage
from cairn.protocol.limits import MAX_METRIC_NAME_BYTES, MAX_METRICS
from cairn.v1 import aggregator_pb2
from cairn.verify.ledger import differing

_LONGEST = 128  # of a digest, in characters
_FIELDS = ("manifest_digest", "payload_digest", "examples", "salt")


class SentUpdates:
    """The updates that left, by the manifest they were sent for.

    Of each it keeps what a receipt repeats and no more, however much else its entry has.
    """

    def __init__(self) -> None:
        self._by_manifest: dict[str, dict[str, dict[str, Any]]] = {}
        self.count = 0

    def __contains__(self, manifest_digest: str) -> bool:
        return manifest_digest in self._by_manifest

    def add(self, facts: Mapping[str, Any]) -> None:
        """Note the facts of an entry `sent`, and under "entry" its number."""
        self.count += 1
        kept = {key: _scalar(facts[key]) for key in _FIELDS if key in facts}
        kept["metrics"] = _metrics(facts.get("metrics"))
        updates = self._by_manifest.setdefault(str(kept.get("manifest_digest")), {})
        updates[_key(kept)] = {**kept, "entry": facts["entry"]}

    def check(self, receipt: aggregator_pb2.Receipt) -> None:
        """Raise InvalidMessage where the receipt is for none of them."""
        expected = {
            "manifest_digest": receipt.manifest_digest.hex(),
            "payload_digest": receipt.payload_digest.hex(),
            "examples": receipt.examples,
            "metrics": dict(receipt.metrics),
        }
        salted = {**expected, "salt": receipt.salt.hex()}
        updates = self._by_manifest.get(receipt.manifest_digest.hex(), {})
        # Entries of version 0.2 have no salt: there the aggregator chose it.
        if _key(salted) in updates or _key(expected) in updates:
            return
        if not updates:
            raise InvalidMessage("the receipt is for an update that no entry before it sent")
        last = list(updates.values())[-1]
        difference = differing(last, salted if "salt" in last else expected)
        raise InvalidMessage(
            f"the receipt is not for what entry {last['entry']} sent: it says {difference}"
        )


def _key(facts: Mapping[str, Any]) -> str:
    return json.dumps(facts, sort_keys=True)


def _scalar(value: object) -> object:
    is_fit = type(value) is int or (isinstance(value, str) and len(value) <= _LONGEST)
    return value if is_fit else None


def _metrics(value: Any) -> dict[str, float] | None:
    """The metrics by name; None where they are not what an owner can have sent."""
    if not isinstance(value, dict) or len(value) > MAX_METRICS:
        return None
    if any(len(n) > MAX_METRIC_NAME_BYTES or type(v) not in {int, float} for n, v in value.items()):
        return None
    try:
        return {name: float(number) for name, number in value.items()}
    except OverflowError:
        return None
