"""host:port as configuration, options and records write it, IPv6 in brackets: parsed here and nowhere else."""

import ipaddress
import re
from dataclasses import dataclass

_FORM = re.compile(r"(?:\[(?P<six>[^\[\]\s]+)\]|(?P<name>[^\s\[\]:/@,]+)):(?P<port>[0-9]{1,5})", re.ASCII)
_PORT_MAX = 65_535


@dataclass(frozen=True, slots=True)
class Address:
    """Where something listens.

    Attributes:
        host: A name, or an address of IPv4 or IPv6, without brackets.
        port: 0 to 65535.
    """

    host: str
    port: int

    def __str__(self) -> str:
        """Return host:port, with brackets around an address of IPv6."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def numeric(self) -> bool:
        """True for an address, False for a name."""
        return _ip_of(self.host) is not None

    @property
    def wildcard(self) -> bool:
        """True if it stands for every address of a machine: a server can listen there, and nobody can be sent there."""
        address = _ip_of(self.host)
        return address is not None and address.is_unspecified


def parse_address(text: str, *, field: str = "address") -> Address:
    """Return the address that `text` names: `name:7443`, `10.0.0.1:7443` or `[fd00::1]:7443`.

    Raises:
        ValueError: it names none; the message begins with `field`.
    """
    found = _FORM.fullmatch(text)
    if found is None:
        hint = "; an IPv6 address stands in brackets, as [fd00::1]:7443" if text.count(":") > 1 else ""
        raise ValueError(f"{field}: must be host:port{hint}")
    if found["six"] is not None and not isinstance(_ip_of(found["six"]), ipaddress.IPv6Address):
        raise ValueError(f"{field}: what stands in brackets must be an IPv6 address, as [fd00::1]:7443")
    if int(found["port"]) > _PORT_MAX:
        raise ValueError(f"{field}: a port is 0 to {_PORT_MAX}")
    return Address(found["six"] or found["name"], int(found["port"]))


def _ip_of(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None
