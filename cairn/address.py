"""Where a node is dialled, and where it listens. Pure."""

import ipaddress
from dataclasses import dataclass
from typing import Self

from cairn.errors import UsageError


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

    @property
    def listen(self) -> str:
        """Where the node itself listens: on this machine only, where it is dialled from here only."""
        try:
            ip = ipaddress.ip_address("127.0.0.1" if self.host == "localhost" else self.host)
        except ValueError:
            return f"0.0.0.0:{self.port}"
        host = ip if ip.is_loopback else {4: "0.0.0.0", 6: "::"}[ip.version]  # noqa: S104 - other machines dial it
        return f"[{host}]:{self.port}" if ip.version == 6 else f"{host}:{self.port}"  # noqa: PLR2004 - IPv6
