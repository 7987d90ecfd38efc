"""Reads and makes the files of certificates and keys; a key is for one account of a machine only."""

import os
import stat
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from cairn.errors import InvalidMessage, UsageError
from cairn.runtime.foreign_files import opened

MAX_PEM_BYTES = 1 << 20
PRIVATE = 0o600
PUBLIC = 0o644
_OTHERS = stat.S_IRWXG | stat.S_IRWXO


def read_file(path: Path, *, private: bool = False) -> bytes:
    """Return the content. Raises UsageError where it cannot be read, or is private and others can."""
    try:
        with opened(path, MAX_PEM_BYTES) as file:
            mode = os.fstat(file.fileno()).st_mode
            content = file.read(MAX_PEM_BYTES)
    except InvalidMessage as error:
        raise UsageError(
            f"{path} cannot be read ({error}); check the path, or make the files of a federation with `cairn init`"
        ) from error
    if private and mode & _OTHERS:
        raise UsageError(
            f"other accounts of this machine may use the key {path}; run `chmod 600 {path}`"
        )
    return content


def load_certificate(path: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(read_file(path))
    except ValueError as error:
        raise UsageError(f"{path} holds no certificate in PEM; give the .crt file") from error


def load_certificates(path: Path) -> list[x509.Certificate]:
    """Return the certificates that stand one after the other in a file; there is one at least."""
    try:
        return x509.load_pem_x509_certificates(read_file(path))
    except ValueError as error:
        raise UsageError(f"{path} holds no certificate in PEM; give the .crt file") from error


def load_key(path: Path) -> tuple[PrivateKeyTypes, bytes]:
    """Return a private key, and its file's content, which is what gRPC takes."""
    content = read_file(path, private=True)
    try:
        return load_pem_private_key(content, password=None), content
    except (TypeError, ValueError, UnsupportedAlgorithm) as error:
        raise UsageError(
            f"{path} holds no unencrypted private key in PEM; give the .key file"
        ) from error


def write_new(path: Path, content: bytes, mode: int) -> None:
    """Make a file that nobody else could open meanwhile. Raises UsageError where one exists."""
    try:
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
            file.write(content)
    except FileExistsError as error:
        raise UsageError(f"{path} exists already; remove it or choose another place") from error
    except OSError as error:
        raise UsageError(f"{path} cannot be written ({error.strerror})") from error
