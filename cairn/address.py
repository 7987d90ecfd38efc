"""Where a node is dialled, and where it listens. Pure."""

import ipaddress
from dataclasses import dataclass, replace
from typing import Self

from cairn.errors import UsageError

_EVERY_HOST = {4: "0.0.0.0", 6: "::"}  # noqa: S104 - other machines dial it


@dataclass(frozen=True)
class Address:
    """Where a node is dialled. Raises UsageError for a text that is not HOST:PORT."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> Self:
        host, _, port = text.rpartition(":")
        if not host or not port.isascii() or not port.isdigit() or not 0 < int(port) < 1 << 16:
            raise UsageError(f"the address {text!r} should be HOST:PORT, as in localhost:7443")
        return cls(host.removeprefix("[").removesuffix("]"), int(port))

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def listen(self) -> str:
        """Where the node itself listens: on this machine only, where it is dialled from here only."""
        try:
            ip = ipaddress.ip_address("127.0.0.1" if self.host == "localhost" else self.host)
        except ValueError:
            return str(replace(self, host=_EVERY_HOST[4]))
        return str(replace(self, host=str(ip) if ip.is_loopback else _EVERY_HOST[ip.version]))

    @property
    def dialled_here(self) -> str:
        """Where this machine itself dials what listens at this address."""
        return str(replace(self, host="localhost") if self.host in _EVERY_HOST.values() else self)
