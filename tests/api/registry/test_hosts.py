"""Which hosts are contacted, and who sees credentials: the canary is a real server that must not be asked anything."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
from support.pulls import BIG, QUICK, SMALL, Pull, bytes_of, named
from support.registry import Registry, digest_of, running_registry

from ollampi.api.errors import ApiError
from ollampi.api.registry.hosts import Hosts, Origin, is_public, origin_of
from ollampi.api.registry.pull import pull
from ollampi.api.registry.tokens import Nobody
from ollampi.api.registry.transfer import Cancel, TransferOptions
from ollampi.api.registry.web import Request, Web, bounded
from ollampi.api.store.local import LocalStore

NOT_PUBLIC = [
    "127.0.0.1",
    "127.255.0.1",
    "0.0.0.0",
    "10.1.2.3",
    "172.16.0.1",
    "192.168.1.1",
    "169.254.169.254",
    "100.64.0.1",
    "224.0.0.1",
    "255.255.255.255",
    "::1",
    "::",
    "fe80::1",
    "fd00:ec2::254",
    "ff02::1",
    "::ffff:127.0.0.1",
    "::ffff:169.254.169.254",
    "64:ff9b::a00:1",
    "2002:7f00:1::",
    "no address",
]


@pytest.mark.parametrize("address", NOT_PUBLIC)
def test_addresses_that_are_not_public(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("address", ["1.1.1.1", "8.8.8.8", "2606:4700::1111", "64:ff9b::808:808", "::ffff:8.8.8.8"])
def test_addresses_that_are_public(address: str) -> None:
    assert is_public(address)


BAD_URLS = ["", "x", "ftp://a", "http://", "http://a:99999", "http://u@h", "http://[::1", "file:///etc", "http://a b"]


@pytest.mark.parametrize("url", BAD_URLS)
def test_what_is_no_url_of_a_server(url: str) -> None:
    with pytest.raises(ApiError, match="is no URL of a server"):
        origin_of(url)


def test_origins() -> None:
    assert origin_of("http://A.example./x") == Origin("http", "a.example", 80)
    assert origin_of("https://[::1]:8443/x") == Origin("https", "::1", 8443)
    assert str(origin_of("https://[::1]:8443/x")) == "https://[::1]:8443"
    assert str(origin_of("https://a:443")) == "https://a"


def resolver(*addresses: str) -> Any:
    calls: list[str] = []

    def resolve(host: str, port: int, *, type: int) -> list[tuple[Any, ...]]:
        calls.append(host)
        return [(0, type, 0, "", (address, port)) for address in addresses]

    resolve.calls = calls  # type: ignore[attr-defined]
    return resolve


@pytest.mark.parametrize("addresses", [("10.0.0.1",), ("8.8.8.8", "10.0.0.1"), ("127.0.0.1",)])
def test_a_name_with_any_private_address_is_refused(addresses: tuple[str, ...]) -> None:
    rule = Hosts((), resolver(*addresses))
    with pytest.raises(
        ApiError, match=r"a\.example is not a public host; .*server\.registries=\[a\.example\]"
    ) as caught:
        rule.addresses(origin_of("https://a.example"))
    assert caught.value.status == 403


def test_a_public_name_is_contacted_at_what_was_checked() -> None:
    assert Hosts((), resolver("8.8.8.8", "1.1.1.1")).addresses(origin_of("https://a")) == ["8.8.8.8", "1.1.1.1"]


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1", "2130706433", "0x7f000001", "localhost", "[::1]"])
def test_spellings_of_loopback_are_refused(host: str) -> None:
    with pytest.raises(ApiError, match=r"is not a public host|is not known"):
        Hosts(()).addresses(origin_of(f"https://{host}:1"))


def test_plain_http_is_for_listed_hosts() -> None:
    rule = Hosts(("http://a:5000", "b:5000", "c"), resolver("10.0.0.1"))
    assert rule.registry("a:5000", insecure=False).scheme == "http"
    assert rule.registry("a", insecure=True).scheme == "https"
    assert rule.registry("b:5000", insecure=False).scheme == "https"
    assert rule.registry("b:5000", insecure=True).scheme == "http"
    assert rule.registry("c", insecure=True) == Origin("http", "c", 80)
    assert rule.registry("d:5000", insecure=True).scheme == "https"
    with pytest.raises(ApiError, match="plain HTTP"):
        rule.addresses(origin_of("http://d"))
    assert rule.addresses(origin_of("http://b:5000")) == ["10.0.0.1"]
    with pytest.raises(ApiError, match="not a public host"):
        rule.addresses(origin_of("https://b:5001"))


@pytest.mark.parametrize("insecure", [False, True])
@pytest.mark.parametrize("host", ["127.0.0.1:{}", "localhost:{}", "127.1:{}"])
def test_a_private_registry_that_is_not_listed_sees_nothing(
    other: Registry, store: LocalStore, host: str, insecure: bool
) -> None:
    other.publish("library/m:latest", b"x")
    options = TransferOptions(limits=QUICK, insecure=insecure)
    name = named(f"{host.format(other.port)}/library/m")
    with pytest.raises(ApiError, match=r"^pull model manifest: .* is not a public host") as caught:
        list(pull(store, name, options))
    assert caught.value.status == 403
    assert not other.seen


def test_a_private_server_of_ours_that_is_not_listed_sees_nothing(other: Registry, store: LocalStore) -> None:
    for source in (other.url, f"https://{other.host}", f"http://user@{other.host}", f"ftp://{other.host}"):
        with pytest.raises(ApiError, match=r"^pull model manifest: "):
            list(pull(store, named("m"), TransferOptions(limits=QUICK, source=source)))
    assert not other.seen


@pytest.mark.parametrize("what", ["/manifests/", "/blobs/"])
def test_a_redirect_to_a_private_host_is_not_followed(
    registry: Registry, other: Registry, pulled: Pull, what: str
) -> None:
    registry.fail(what, "redirect", f"{other.url}/x", times=100)
    with pytest.raises(ApiError, match=r"plain HTTP|not a public host"):
        pulled()
    assert not other.seen


@pytest.mark.parametrize("location", ["ftp://x", "//", "http://", "http://[", "http://\x7f"])
def test_a_redirect_to_nowhere(registry: Registry, pulled: Pull, location: str) -> None:
    registry.fail("/blobs/", "redirect", location, times=100)
    with pytest.raises(ApiError):
        pulled()


def test_a_redirect_on_the_same_host(registry: Registry, store: LocalStore, pulled: Pull) -> None:
    registry.files["/elsewhere"] = (BIG, {})
    registry.fail(f"GET /v2/.*{digest_of(BIG)}", "redirect", "/elsewhere", times=100)
    pulled()
    assert bytes_of(store, f"{registry.host}/library/m") == [BIG, SMALL]


def test_redirects_without_end(registry: Registry, pulled: Pull) -> None:
    registry.fail("/blobs/", "redirect", "/v2/library/m/blobs/x", times=100)
    with pytest.raises(ApiError, match="redirects more than 5 times"):
        pulled()
    assert len(registry.lines("/blobs/")) == 6


def test_a_redirect_that_expires_is_asked_for_again(
    registry: Registry, other: Registry, store: LocalStore, pulled: Pull
) -> None:
    other.files["/signed"] = (BIG, {})
    registry.fail(f"GET /v2/.*{digest_of(BIG)}", "redirect", f"{other.url}/signed", times=100)
    for _ in range(2):
        other.fail("/signed", "drop", 5 << 20, times=2)  # more than a piece: no fault
        other.fail("/signed", "status", 403)
    pulled(num_streams=1, registries=(registry.url, other.url))
    assert bytes_of(store, f"{registry.host}/library/m") == [BIG, SMALL]
    assert len(registry.lines(f"GET /v2/.*{digest_of(BIG)}")) == 3


def test_a_token_is_fetched_from_the_registry_and_shown_to_it_alone(
    registry: Registry, other: Registry, store: LocalStore, pulled: Pull
) -> None:
    registry.token = "secret"
    other.files["/signed"] = (BIG, {})
    pulled()
    assert registry.lines("/token") == ["GET /token?service=registry&scope=repository%3Alibrary%2Fm%3Apull"]
    told = [headers.get("Authorization") for line, headers in registry.seen if "/blobs/" in line]
    assert set(told) == {"Bearer secret"}
    assert all("Authorization" not in headers for line, headers in registry.seen if "/token" in line)


def test_another_host_sees_no_token(registry: Registry, other: Registry, store: LocalStore, pulled: Pull) -> None:
    registry.token = "secret"

    def redirect(handler: Any) -> None:
        assert handler.headers["Authorization"] == "Bearer secret"
        handler._answer(307, b"", {"Location": f"{other.url}/signed"})

    registry.fail(f"GET /v2/.*{digest_of(BIG)}", "answer", redirect, times=100)
    other.files["/signed"] = (BIG, {})
    pulled(registries=(registry.url, other.url))
    assert bytes_of(store, f"{registry.host}/library/m") == [BIG, SMALL]
    assert other.seen
    assert all("Authorization" not in headers for _, headers in other.seen)


@pytest.mark.parametrize("realm", ["{other}/token", "http://127.0.0.1:1/token", "https://{host}/token", "/token", "x"])
def test_a_realm_elsewhere_is_not_asked(registry: Registry, other: Registry, pulled: Pull, realm: str) -> None:
    registry.fail("/manifests/", "realm", realm.format(other=other.url, host=registry.host), times=100)
    with pytest.raises(ApiError, match=r"^pull model manifest: "):
        pulled(registries=(registry.url, other.url))
    assert not other.seen
    assert not registry.lines("/token")


def test_a_token_endpoint_that_redirects_is_not_followed(registry: Registry, other: Registry, pulled: Pull) -> None:
    registry.token = "secret"
    registry.fail("/token", "redirect", f"{other.url}/token", times=100)
    with pytest.raises(ApiError, match=r"^pull model manifest: .* answered 307"):
        pulled(registries=(registry.url, other.url))
    assert not other.seen


@pytest.mark.parametrize("token", ["a\r\nX: y", "", "x" * 20000, "ä"])
def test_a_token_that_is_none(registry: Registry, pulled: Pull, token: str) -> None:
    registry.fail("/manifests/", "realm", f"{registry.url}/token")
    registry.token = token
    with pytest.raises(ApiError, match="gave no token"):
        pulled()


def test_a_registry_that_never_is_content(registry: Registry, pulled: Pull) -> None:
    registry.token = "secret"
    registry.fail("/manifests/", "realm", f"{registry.url}/token", times=100)
    with pytest.raises(ApiError, match="answered 401"):
        pulled()
    assert len(registry.lines("/manifests/")) == 2


@pytest.fixture
def certificate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A certificate for registry.test alone, which this process trusts."""
    path = tmp_path / "both.pem"
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
        "-days",
        "2",
    ]
    command += ["-subj", "/CN=registry.test", "-addext", "subjectAltName=DNS:registry.test"]
    command += ["-keyout", str(path), "-out", str(tmp_path / "certificate.pem")]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except OSError:
        pytest.skip("there is no openssl to make a certificate")
    path.write_bytes(path.read_bytes() + (tmp_path / "certificate.pem").read_bytes())
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "certificate.pem"))
    return path


@pytest.mark.parametrize(("host", "fits"), [("registry.test", True), ("other.test", False), ("127.0.0.1", False)])
def test_tls_goes_to_the_checked_address_and_asks_for_the_right_name(
    tmp_path: Path, certificate: Path, host: str, fits: bool
) -> None:
    with running_registry(tmp_path / "secure", certificate=certificate) as registry:
        registry.files["/x"] = (b"right", {})
        resolve = resolver("127.0.0.1")
        web = Web(Hosts((f"{host}:{registry.port}",), resolve), Cancel(), QUICK, 2)
        request = Request("GET", f"https://{host}:{registry.port}/x")
        if fits:
            for _ in range(3):
                assert bounded(web.send(request, Nobody())[0], 100, "it") == b"right"
            assert resolve.calls == [host]
        else:
            with pytest.raises(ApiError, match="no TLS with"):
                web.send(request, Nobody())
            assert not registry.seen
        web.close()


def test_plain_http_behind_an_https_name_is_told(registry: Registry, pulled: Pull) -> None:
    with pytest.raises(ApiError, match=rf"no TLS with .*registries=\[http://{registry.host}\]"):
        pulled(registries=(registry.host,))
