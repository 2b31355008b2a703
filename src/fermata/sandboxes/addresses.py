"""Where a sandbox may connect to: hosts as it names them, and the addresses that they turn out to be.

Pure, but for one question to the kernel: whether an address is this machine's own.
"""

import re
import socket
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address, ip_network

IPAddress = IPv4Address | IPv6Address

_LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_NAME = re.compile(rf"{_LABEL}(?:\.{_LABEL})*\.?")
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")
_PORT = re.compile(r"[0-9]{1,5}")
#: Names that only a local network answers; looking them up would already tell something about it.
_LOCAL_NAMES = ("localhost", "local", "internal", "home.arpa", "localdomain", "lan", "intranet")

_REFUSED_V4 = tuple(
    (ip_network(network), words)
    for network, words in (
        ("0.0.0.0/8", "an unspecified address"),
        ("10.0.0.0/8", "a private address"),
        ("100.64.0.0/10", "a carrier's shared address"),
        ("127.0.0.0/8", "a loopback address"),
        ("168.63.129.16/32", "a cloud's metadata address"),
        ("169.254.0.0/16", "a link-local or metadata address"),
        ("172.16.0.0/12", "a private address"),
        ("192.0.0.0/24", "a reserved address"),
        ("192.0.2.0/24", "a documentation address"),
        ("192.88.99.0/24", "a reserved address"),
        ("192.168.0.0/16", "a private address"),
        ("198.18.0.0/15", "a benchmarking address"),
        ("198.51.100.0/24", "a documentation address"),
        ("203.0.113.0/24", "a documentation address"),
        ("224.0.0.0/4", "a multicast address"),
        ("240.0.0.0/4", "a reserved address"),
    )
)
_GLOBAL_V6 = IPv6Network("2000::/3")
_NAT64 = IPv6Network("64:ff9b::/96")
_REFUSED_V6 = tuple(
    (IPv6Network(network), words)
    for network, words in (
        ("::/128", "an unspecified address"),
        ("::1/128", "a loopback address"),
        ("fc00::/7", "a private address"),
        ("fe80::/10", "a link-local address"),
        ("fec0::/10", "a private address"),
        ("ff00::/8", "a multicast address"),
        ("2001::/23", "a reserved address"),
        ("2001:db8::/32", "a documentation address"),
        ("2002::/16", "a 6to4 address"),
        ("3fff::/20", "a documentation address"),
    )
)


@dataclass(frozen=True, slots=True)
class Target:
    """A host and port as a sandbox asked for them. `host` is lower case, without a final dot."""

    host: str
    port: int

    @property
    def authority(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def literal(self) -> IPAddress | None:
        try:
            return ip_address(self.host)
        except ValueError:
            return None


def parse_authority(text: str, *, default_port: int | None = None) -> Target | None:
    """`host:port`, `[v6]:port` or, with a default port, the host alone. None for anything else.

    An IPv4 address is four decimal numbers: shortened, octal and hexadecimal forms, which resolvers
    take for addresses as well, are no hosts.
    """
    text = text.lower()
    if text.startswith("["):
        host, closed, rest = text[1:].partition("]")
        if not closed or not _is_address(host, IPv6Address) or "%" in host:
            return None
        host = str(IPv6Address(host))
    else:
        host, colon, port = text.partition(":")
        rest = colon + port
        if not _is_host(host):
            return None
        host = host.removesuffix(".")
    if not rest and default_port is not None:
        return Target(host, default_port)
    if not rest.startswith(":") or not _PORT.fullmatch(rest[1:]) or not 0 < int(rest[1:]) < 65536:
        return None
    return Target(host, int(rest[1:]))


def _is_host(host: str) -> bool:
    if len(host) > 253 or not host.isascii() or not _NAME.fullmatch(host):
        return False
    if _NUMBER.fullmatch(host.removesuffix(".").rpartition(".")[2]):
        return _is_address(host, IPv4Address)
    return True


def _is_address(text: str, kind: type[IPv4Address] | type[IPv6Address]) -> bool:
    try:
        kind(text)
    except ValueError:
        return False
    return True


def refuse_name(host: str) -> str | None:
    """Why a name is not even looked up, or None. An address is no name and is not refused here."""
    if ":" in host or _is_address(host, IPv4Address):
        return None
    if "." not in host or host.endswith(tuple(f".{name}" for name in _LOCAL_NAMES)):
        return "it is a name of a local network"
    return None


def unwrap(address: IPAddress) -> IPAddress:
    """The IPv4 address inside an IPv4-mapped or NAT64 one, which is where its packets end; else the same."""
    if isinstance(address, IPv6Address):
        if address.ipv4_mapped is not None:
            return address.ipv4_mapped
        if address in _NAT64:
            return IPv4Address(int(address) & 0xFFFFFFFF)
    return address


def refuse_address(address: IPAddress) -> str | None:
    """Why a sandbox may not connect to this address, or None: only public ones that are not our own."""
    inner = unwrap(address)
    if isinstance(inner, IPv4Address):
        for network, words in _REFUSED_V4:
            if inner in network:
                return words
    else:
        for network6, words in _REFUSED_V6:
            if inner in network6:
                return words
        if inner not in _GLOBAL_V6 or inner.scope_id is not None:
            return "a reserved address"
    return "an address of this machine" if is_own(inner) else None


def is_own(address: IPAddress) -> bool:
    """Whether the address is configured on this machine: then, and only then, the kernel would use it as the
    source of packets to itself. Sends nothing. A public address that a router translates is not seen."""
    family = socket.AF_INET if isinstance(address, IPv4Address) else socket.AF_INET6
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((str(address), 9))
        except OSError:
            return False
        return ip_address(probe.getsockname()[0]) == address
