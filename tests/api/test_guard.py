"""Check what is refused before any route looks at it: hosts, origins, sizes, bodies."""

from __future__ import annotations

import io

import pytest

from ollampi.api.durations import parse_keep_alive
from ollampi.api.errors import ApiError
from ollampi.api.guard import host_allowed


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "LOCALHOST:11434",
        "127.0.0.1",
        "127.0.0.1:1",
        "[::1]:80",
        "10.1.2.3",
        "192.168.0.1:8",
        "a.local",
        "x.internal:5",
        "y.localhost",
        "0.0.0.0",
        "172.16.0.9",
    ],
)
def test_allowed_hosts(client, host):
    assert client.get("/api/version", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "127.0.0.1.evil.example",
        "localhost.evil.example",
        "8.8.8.8",
        "localhost,evil.example",
        "a b",
        "[::ffff:8.8.8.8]",
        "[2001:db8::1]:80",
        "evil.example:localhost",
        "local",
        "172.32.0.1",
        "[::1]evil.example",
        "[::1",
        "[localhost]",
        "[127.0.0.1",
    ],
)
@pytest.mark.parametrize("method", ["get", "post", "options", "delete"])
def test_refused_hosts(client, host, method):
    response = getattr(client, method)("/api/generate", headers={"Host": host})
    assert (response.status_code, response.data) == (403, b"")


def test_missing_host():
    assert not host_allowed("")


@pytest.mark.parametrize(
    ("host", "status"),
    [
        *((name, 403) for name in ("evil.example", "127.0.0.1.evil.example", "")),
        *((name, 200) for name in ("a.example", "node17", "93.184.216.34:11434", "[2001:db8::1]", "x.internal")),
    ],
)
def test_hosts_beyond_loopback(make_client, models_folder, host, status):
    client = make_client(models_folder, loopback=False, hosts=["a.example"])
    assert client.get("/", headers={"Host": host}).status_code == status


def test_any_host_where_the_operator_says_so(make_client, models_folder):
    client = make_client(models_folder, loopback=False, hosts=["*"])
    assert client.get("/", headers={"Host": "any.example"}).status_code == 200


def test_every_answer_has_the_id_of_its_request(client):
    own = client.get("/", headers={"X-Request-Id": "mine-1"}).headers["X-Request-Id"]
    assert own == "mine-1"
    for path, headers in (("/nope", {}), ("/api/tags", {"Host": "evil.example"}), ("/", {"X-Request-Id": "a b\tc"})):
        first, second = (client.get(path, headers=headers).headers["X-Request-Id"] for _ in range(2))
        assert first.startswith("req_")
        assert first != second


def test_options(client):
    assert client.options("/api/generate").status_code == 204
    headers = {"Origin": "http://localhost:3000", "Access-Control-Request-Method": "POST"}
    response = client.options("/api/chat", headers=headers | {"Access-Control-Request-Private-Network": "true"})
    assert response.status_code == 204
    assert response.headers["Access-Control-Allow-Origin"] == "http://localhost:3000"
    assert "Content-Type" in response.headers["Access-Control-Allow-Headers"]
    assert "POST" in response.headers["Access-Control-Allow-Methods"]
    assert response.headers["Vary"] == "Origin"
    assert "Access-Control-Allow-Private-Network" not in response.headers


@pytest.mark.parametrize(
    "origin",
    [
        "http://localhost:3000",
        "https://127.0.0.1:8",
        "http://0.0.0.0",
        "app://x",
        "file://",
        "tauri://localhost",
        "vscode-webview://abc",
        "vscode-file://x",
        "https://my.example",
        "https://a.wild.example",
    ],
)
def test_allowed_origins(make_client, models_folder, origin):
    client = make_client(models_folder, origins=["https://my.example", "https://*.wild.example"])
    response = client.get("/api/version", headers={"Origin": origin})
    assert response.headers["Access-Control-Allow-Origin"] == origin


@pytest.mark.parametrize(
    "origin",
    [
        "null",
        "http://evil.example",
        "http://localhost.evil.example",
        "xhttp://localhost",
        "http://localhost:80x",
        "https://my.example.evil",
        "evilapp://x",
        "https://mylexample",
    ],
)
def test_refused_origins(make_client, models_folder, origin):
    response = make_client(models_folder, origins=["https://my.example"]).get("/", headers={"Origin": origin})
    assert response.status_code == 403
    assert "Access-Control-Allow-Origin" not in response.headers


def test_same_origin_and_no_origin(client):
    assert client.get("/", headers={"Host": "box.local:1", "Origin": "http://box.local:1"}).status_code == 200
    assert "Access-Control-Allow-Origin" not in client.get("/").headers


@pytest.mark.parametrize("route", ["generate", "chat", "show"])
@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"", "missing request body"),
        (b"{", "json: "),
        (b"[]", "json: the body must be an object"),
        (b"null", "json: the body must be an object"),
        (b'{"model": NaN}', "json: NaN is not a JSON number"),
        (b'{"model": 1}', 'json: field "model" must be of type string, not number'),
        (b"\xff\xfe{}", "json: "),
        (b"[" * 200_000, "json: the body is nested too deeply"),
    ],
)
def test_bodies(client, route, body, text):
    response = client.post(f"/api/{route}", data=body, content_type="application/x-www-form-urlencoded")
    assert response.status_code == 400
    assert response.json["error"].startswith(text)


def test_deep_but_balanced_body(client):
    for inner in (b"[" * 5000 + b"]" * 5000, b'["\\ud800"' + b",[" * 5000 + b"]" * 5001):
        response = client.post("/api/generate", data=b'{"model":"demo","prompt":"x","z":' + inner + b"}")
        assert response.status_code in (200, 400)


def test_any_content_type_and_duplicate_keys(client):
    for content_type in (None, "text/plain", "multipart/form-data; boundary=x"):
        body = b'{"model":"nope","model":"demo"}'
        assert client.post("/api/show", data=body, content_type=content_type).status_code == 200


def test_body_limit(make_client, models_folder):
    client = make_client(models_folder, max_body_bytes=100)
    for size in (101, 102, 1000):
        chunked = {"input_stream": io.BytesIO(b"x" * size), "environ_overrides": {"wsgi.input_terminated": True}}
        for sent in ({"data": b"x" * size}, chunked):
            response = client.post("/api/show", **sent)
            assert (response.status_code, response.json) == (413, {"error": "the request body is too large"})
            assert response.headers["Connection"] == "close"
    assert client.post("/api/show", data=b'{"model":"demo"}'.ljust(100)).status_code == 200


def test_compressed_bodies(client):
    response = client.post("/api/show", data=b"x", headers={"Content-Encoding": "gzip"})
    assert response.status_code == 415
    body = {"model": "demo"}
    assert client.post("/api/show", json=body, headers={"Content-Encoding": "identity"}).status_code == 200


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None),
        (0, 0),
        (1.5, 1.5),
        (-3, -1),
        ("10m", 600),
        ("1h30m", 5400),
        ("500ms", 0.5),
        ("-1s", -1),
        ("0", 0),
        ("1.5h", 5400),
        ("+2s", 2),
        ("0s", 0),
        (-(10**400), -1),
    ],
    ids=lambda value: str(value)[:20],
)
def test_keep_alive(value, seconds):
    assert parse_keep_alive(value) == seconds


@pytest.mark.parametrize(
    "value",
    ["300", "", "5", "m", "5 m", "1h-5m", "٣s", "5d", True, [], {}, 1e300, 10**400, "9" * 25 + "h"],
    ids=lambda value: str(value)[:20],
)
def test_wrong_keep_alive(value):
    with pytest.raises(ApiError) as caught:
        parse_keep_alive(value)
    assert caught.value.status == 400


@pytest.mark.parametrize(
    ("target", "status"),
    [
        ("/api/version", 200),
        ("/api/version?x=http://evil.example/", 200),
        ("http://localhost:11434/api/version", 200),
        ("HTTP://127.0.0.1/api/version", 200),
        ("http://evil.example/api/version", 403),
        ("https://evil.example:80/api/version", 403),
        ("http://localhost@evil.example/api/version", 403),
        ("http://evil.example@localhost/api/version", 403),
        ("http:///api/version", 403),
        ("http:/api/version", 403),
        ("http://[::1/api/version", 403),
        ("evil.example/api/version", 403),
    ],
)
def test_a_whole_url_as_target_must_name_an_allowed_host_too(client, target, status):
    response = client.get("/api/version", environ_overrides={"RAW_URI": target}, headers={"Host": "localhost"})
    assert response.status_code == status
