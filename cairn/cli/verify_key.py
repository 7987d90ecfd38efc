"""Finds the aggregator's signing key that `cairn verify` is to believe."""

from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from pydantic import ConfigDict

from cairn.config import Settings, SigningKeyText
from cairn.errors import UsageError
from cairn.identity.signing_keys import parse_signing_key_text


class _PinningNode(Settings):
    """What of a node's file is needed here; the node itself checks the rest."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    aggregator_signing_key: SigningKeyText | None = None


def pinned_key(text: str | None, config: Path | None) -> Ed25519PublicKey | None:
    """The key that was given or that a node's file pins; None where neither was named.

    Raises UsageError where both were, or where the file pins none: an aggregator's own does not.
    """
    if text is not None and config is not None:
        raise UsageError("--key and --config both name the aggregator's key: give one of them")
    if config is not None:
        text = _PinningNode.load(config).aggregator_signing_key
        if text is None:
            raise UsageError(
                f"{config} has no aggregator_signing_key: name the file of an owner or of a coordinator"
            )
    return parse_signing_key_text(text) if text is not None else None
