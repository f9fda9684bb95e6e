"""Decide which hosts a transfer may contact, and at which addresses.

Names of models come from clients: without a rule they would have the server ask hosts of its own network, which
trust it. Only public addresses are contacted, unless the operator listed the host. A name is resolved once and the
connection goes to an address that was checked, so that a second answer of the name server cannot change it.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import urljoin, urlsplit

from ollampi.api.errors import ApiError, bad_request, shown

_PORTS = {"http": 80, "https": 443}
_HOST = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]{0,252})|\[[0-9a-fA-F:.]{2,45}\]", re.ASCII)
_NAT64 = ipaddress.ip_network("64:ff9b::/96")

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class Resolver(Protocol):
    """What socket.getaddrinfo does."""

    def __call__(self, host: str, port: int, *, type: int) -> Sequence[tuple[Any, ...]]:
        """Return a host's addresses; raise OSError."""


@dataclass(frozen=True)
class Origin:
    """Scheme, host and port: what credentials belong to. IPv6 addresses are kept without brackets."""

    scheme: str
    host: str
    port: int

    @property
    def netloc(self) -> str:
        """Return the host, with the port where it is not the scheme's."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORTS[self.scheme] else f"{host}:{self.port}"

    def __str__(self) -> str:
        return f"{self.scheme}://{self.netloc}"


def origin_of(url: str) -> Origin:
    """Return the origin of an absolute HTTP URL; raise ApiError (400) where it is none."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        parts, port = urlsplit(""), None
    authority = re.sub(r":\d*\Z", "", parts.netloc)
    if parts.scheme not in _PORTS or not _HOST.fullmatch(authority) or not parts.hostname:
        raise bad_request(f"{shown(url)!r} is no URL of a server; write http:// or https://, a host and a port")
    return Origin(parts.scheme, parts.hostname.lower().rstrip("."), _PORTS[parts.scheme] if port is None else port)


def joined(url: str, reference: str) -> str:
    """Return the absolute URL that a reference in an answer of `url` means; raise ApiError (502) where it is none."""
    try:
        return urljoin(url, reference)
    except ValueError as e:
        raise ApiError(502, f"{origin_of(url).netloc} refers to {shown(reference)!r}, which is no URL") from e


class Hosts:
    """The rule: public addresses, and hosts that are listed as "host", "host:port" or "http://host:port"."""

    def __init__(self, registries: Sequence[str], resolve: Resolver = socket.getaddrinfo) -> None:
        self._resolve = resolve
        self._plain: set[tuple[str, int]] = set()  # spoken to over plain HTTP without being asked to
        self._listed: set[tuple[str, int]] = set()
        for each in registries:
            self._list(each)

    def _list(self, text: str) -> None:
        bare = "://" not in text
        origin = origin_of(f"https://{text}" if bare else text)
        self._listed.add((origin.host, origin.port))
        if bare and origin.port == _PORTS["https"]:
            self._listed.add((origin.host, _PORTS["http"]))
        if origin.scheme == "http":
            self._plain.add((origin.host, origin.port))

    def is_listed(self, origin: Origin) -> bool:
        """Return whether the operator listed a host with this port."""
        return (origin.host, origin.port) in self._listed

    def registry(self, host: str, insecure: bool) -> Origin:
        """Return how to speak to the registry called `host`, perhaps with a port; plain HTTP only where it is listed.

        Raise ApiError (400) where that is no host.
        """
        plain = origin_of(f"http://{host}")
        if (plain.host, plain.port) in self._plain or (insecure and self.is_listed(plain)):
            return plain
        return origin_of(f"https://{host}")

    def addresses(self, origin: Origin) -> list[str]:
        """Return the addresses at which a host may be contacted.

        Raise ApiError, 403 where it must not be and 502 where it is not known.
        """
        listed = self.is_listed(origin)
        if origin.scheme == "http" and not listed:
            raise _refused(origin, "would be contacted over plain HTTP")
        try:
            found = self._resolve(origin.host, origin.port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as e:
            raise ApiError(502, f"the name {origin.host!r} is not known; check it, and this host's name server") from e
        addresses = list(dict.fromkeys(str(each[4][0]) for each in found))
        if not listed and not all(is_public(address) for address in addresses):
            raise _refused(origin, "is not a public host")
        return addresses


def is_public(address: str) -> bool:
    """Return whether an address is one of the Internet's, also behind the prefixes that stand for an IPv4 address."""
    try:
        return all(each.is_global and not each.is_multicast for each in _meant(ipaddress.ip_address(address)))
    except ValueError:
        return False


def _meant(address: Address) -> list[Address]:
    """Return an address and those that a gateway could make of it."""
    if isinstance(address, ipaddress.IPv4Address):
        return [address]
    mapped = address.ipv4_mapped
    if mapped is not None:
        return [mapped]
    inside: list[Address] = [ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)] if address in _NAT64 else []
    inside += [each for each in (address.sixtofour, *(address.teredo or ())) if each is not None]
    return inside if address in _NAT64 else [address, *inside]


def _refused(origin: Origin, reason: str) -> ApiError:
    return ApiError(
        403,
        f"{origin.netloc} {reason}; where it should be used, start the server with"
        f" server.registries=[{origin if origin.scheme == 'http' else origin.netloc}]",
    )
