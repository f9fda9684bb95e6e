"""Test server addresses against Ollama's rules."""

import pytest

from ollampi.launcher.address import parse_address
from ollampi.mpiruntime.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("", "http://127.0.0.1:11434"),
        ("node7", "http://node7:11434"),
        ("node7:8000", "http://node7:8000"),
        (":8000", "http://127.0.0.1:8000"),
        ("0.0.0.0", "http://127.0.0.1:11434"),
        ("0.0.0.0:80", "http://127.0.0.1:80"),
        (' "10.0.0.1:1" ', "http://10.0.0.1:1"),
        ("http://node7:8000", "http://node7:8000"),
        ("http://node7:8000/", "http://node7:8000"),
        ("http://node7", "http://node7:80"),
        ("https://node7", "https://node7:443"),
        ("https://node7/models/", "https://node7:443/models"),
        ("::1", "http://[::1]:11434"),
        ("[::1]:8000", "http://[::1]:8000"),
        ("[::]", "http://[::1]:11434"),
        ("::", "http://[::1]:11434"),
    ],
)
def test_a_client_reaches(text: str, url: str) -> None:
    assert parse_address(text, "--host").url == url


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("", "127.0.0.1", 11434),
        ("0.0.0.0", "0.0.0.0", 11434),
        (":11500", "0.0.0.0", 11500),
        ("[::]:11500", "::", 11500),
        ("[::1]:11434", "::1", 11434),
        ("::1", "::1", 11434),
        ("http://node7", "node7", 80),
        ("https://node7/", "node7", 443),
        ("http://node7:8000/models", "node7", 8000),
    ],
)
def test_a_server_listens_at(text: str, host: str, port: int) -> None:
    address = parse_address(text, "OLLAMA_HOST")
    assert (address.host, address.port) == (host, port)


@pytest.mark.parametrize("text", ["ftp://x", "://x", "x:port", "x:99999", "[::1"])
def test_what_is_no_address_is_named(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_address(text, "OLLAMA_HOST")
    assert str(caught.value).startswith(f"OLLAMA_HOST is {text!r}; it must be host, host:port, :port or http://")
