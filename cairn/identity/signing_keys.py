"""The key that the aggregator signs with, and its public half as text."""

import base64
import binascii
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from cairn.errors import InvalidMessage, UsageError
from cairn.identity.pem import load_key

SIGNING_KEY_PREFIX = "ed25519:"


def load_signing_key(path: Path) -> Ed25519PrivateKey:
    """Load the key that the aggregator signs manifests, receipts and statements with."""
    key, _ = load_key(path)
    if not isinstance(key, Ed25519PrivateKey):
        raise UsageError(f"{path} is not an Ed25519 key; `cairn init` makes one as signing.key")
    return key


def public_signing_key_text(key: Ed25519PrivateKey) -> str:
    """The public half of the signing key, as it stands in the files of owners and coordinator."""
    raw = key.public_key().public_bytes_raw()
    return SIGNING_KEY_PREFIX + base64.b64encode(raw).decode()


def parse_signing_key_text(text: str) -> Ed25519PublicKey:
    """Read what `public_signing_key_text` wrote. Raises InvalidMessage for any other text."""
    encoded = text.removeprefix(SIGNING_KEY_PREFIX)
    try:
        raw = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        raw = b""
    # One key has one text: base64 leaves bits at the end that decoding ignores.
    if len(raw) != 32 or SIGNING_KEY_PREFIX + base64.b64encode(raw).decode() != text:  # noqa: PLR2004 - the length of an Ed25519 key
        raise InvalidMessage(f"{text!r} is not a signing key: ed25519: and 32 bytes in base64")
    return Ed25519PublicKey.from_public_bytes(raw)
