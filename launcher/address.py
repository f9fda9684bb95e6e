"""Read a server's address as Ollama writes it, for the client and for the server alike."""

from dataclasses import dataclass
from urllib.parse import urlsplit

from ollampi.mpiruntime.errors import ConfigError, quoted

_DEFAULT_PORTS = {"": 11434, "http": 80, "https": 443}
_REACHED_AT = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # a server listens there; nobody connects to it


@dataclass(frozen=True)
class Address:
    """Hold the parts of an address; host is 0.0.0.0 where only a port was given, as in Ollama."""

    scheme: str
    host: str
    port: int
    path: str

    @property
    def url(self) -> str:
        """Return the URL under which a client on this host reaches the server."""
        host = _REACHED_AT.get(self.host, self.host)
        return f"{self.scheme}://{f'[{host}]' if ':' in host else host}:{self.port}{self.path}"


def parse_address(text: str, name: str) -> Address:
    """Return the address that a value of OLLAMA_HOST or --host stands for; raise ConfigError with its name."""
    scheme, has_scheme, rest = text.strip().strip("\"'").rpartition("://")
    if rest.count(":") > 1 and not rest.startswith("["):
        rest = f"[{rest}]"  # a bare IPv6 address
    try:
        if scheme not in _DEFAULT_PORTS or (has_scheme and not scheme):
            raise ValueError("the scheme must be http or https")
        parts = urlsplit(f"//{rest}")
        port = _DEFAULT_PORTS[scheme] if parts.port is None else parts.port
    except ValueError as error:
        raise ConfigError(
            f"{name} is {quoted(text)}; it must be host, host:port, :port or http://host:port ({error})"
        ) from error
    host = parts.hostname or ("127.0.0.1" if parts.port is None else "0.0.0.0")
    return Address(scheme or "http", host, port, parts.path.rstrip("/"))
