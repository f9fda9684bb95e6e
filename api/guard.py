"""Look at every request before its route does: host name, origin, key, size, and that the body is a JSON object."""

from __future__ import annotations

import ipaddress
import json
import re
import secrets
import socket
import time
from collections.abc import Sequence
from typing import Any, NoReturn
from urllib.parse import urlsplit

from flask import Flask, Response, g, request
from werkzeug.exceptions import BadRequest, HTTPException, RequestEntityTooLarge

from ollampi.api.access import Permission, sent_key
from ollampi.api.compressed import MAX_UNPACKED_BYTES, unpacked
from ollampi.api.errors import ApiError, bad_request, shown
from ollampi.api.settings import Settings
from ollampi.api.wires.wire import ANTHROPIC, VERSION_HEADER, wire_of

_LOCAL_HOSTS = ("localhost", "127.0.0.1", "0.0.0.0", "[::1]")
_APP_SCHEMES = ("app", "file", "tauri", "vscode-webview", "vscode-file")
_METHODS = "GET,POST,PUT,PATCH,DELETE,HEAD,OPTIONS"
_STAINLESS = "Lang Package-Version Os Arch Retry-Count Runtime Runtime-Version Async Helper-Method Poll-Helper"
_HEADERS = ",".join(
    ["Authorization", "Content-Type", "User-Agent", "Accept", "X-Requested-With", "OpenAI-Beta"]
    + [f"X-Stainless-{name}" for name in [*_STAINLESS.split(), "Custom-Poll-Interval", "Timeout"]]
)
_PRIVATE_NETWORKS = [
    ipaddress.ip_network(text) for text in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7")
]
_BRACKETED = re.compile(r"(\[[^][]*\])(?::\d+)?", re.ASCII)
_WORD = re.compile(r"[a-z0-9_-]+", re.ASCII)  # a name of the local network
_REQUEST_ID = re.compile(r"[\w.:-]{1,100}", re.ASCII)
# Half a surrogate pair, written as an escape, in text without escaped backslashes.
_HALF_PAIR = re.compile(
    r"\\u[dD](?:[89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F][0-9a-fA-F]{2})"
    r"|(?<!\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD])[c-fC-F][0-9a-fA-F]{2})"
)


def install_guard(app: Flask, settings: Settings) -> None:
    """Make `app` check every request and add the CORS headers to every answer."""
    app.config["MAX_CONTENT_LENGTH"] = settings.max_body_bytes + 1  # a chunked body that reaches it is too large
    origins = [re.compile(pattern, re.IGNORECASE) for pattern in _origin_patterns(settings.origins)]

    @app.before_request
    def check() -> Response | None:
        """Return the answer to a request that no route may see, else None; raise ApiError."""
        g.started_ns = time.perf_counter_ns()
        g.request_id = request_id(request.headers.get("X-Request-Id", ""))
        origin = request.headers.get("Origin")
        if origin and not _same_site(origin) and not any(p.fullmatch(origin) for p in origins):
            return Response(status=403)
        named = [request.environ.get("HTTP_HOST", ""), *_target_host(request.environ.get("RAW_URI", "/"))]
        if not all(host_allowed(host, settings.loopback, settings.hosts) for host in named):
            return Response(status=403)
        if request.method == "OPTIONS":
            return Response(status=204)
        route = app.config["ROUTES"].get(request.endpoint)
        headers = request.headers
        settings.keys.check(
            Permission.PUBLIC if route is None else route.permission,  # what is no route is answered 404 or 405
            sent_key(headers.get("Authorization", ""), headers.get("X-Api-Key", "")),
        )
        coding = headers.get("Content-Encoding", "").lower()
        if coding not in ("", "identity") and not (coding == "zstd" and route is not None and route.zstd):
            raise ApiError(415, "the request body must not be compressed so; send it without Content-Encoding")
        return None

    @app.after_request
    def allow_origin(response: Response) -> Response:
        """Return the response with its request's id and what a browser wants to know."""
        response.headers["X-Request-Id"] = g.request_id
        if wire_of(request.path, request.headers.get(VERSION_HEADER)) is ANTHROPIC:
            response.headers["Request-Id"] = g.request_id
        origin = request.headers.get("Origin")
        if origin and response.status_code != 403 and not _same_site(origin):
            response.headers["Access-Control-Allow-Origin"] = origin
            response.headers["Vary"] = "Origin"
            if request.method == "OPTIONS":
                response.headers["Access-Control-Allow-Methods"] = _METHODS
                response.headers["Access-Control-Allow-Headers"] = _HEADERS
                response.headers["Access-Control-Max-Age"] = "43200"
        return response


def request_id(given: str) -> str:
    """Return the id of a request: what its client gave, where that is a word, or a new one."""
    return given if _REQUEST_ID.fullmatch(given) else f"req_{secrets.token_hex(12)}"


def host_allowed(header: str, loopback: bool = True, names: Sequence[str] = ()) -> bool:
    """Return whether a Host header names this machine, a private address or one of `names` (`*`: any).

    A page that rebinds its own name to our address still sends that name, which has a dot. So beyond loopback, where
    clients know us by what we cannot know, any address will do, and any name without a dot.
    """
    host = _without_port(header.strip().lower())
    if "*" in names or host in names:
        return True
    try:
        address = ipaddress.ip_address(host[1:-1] if host.startswith("[") and host.endswith("]") else host)
    except ValueError:
        ours = host in ("localhost", socket.gethostname().lower()) or host.endswith(
            (".localhost", ".local", ".internal")
        )
        return ours or (not loopback and _WORD.fullmatch(host) is not None)
    private = any(address.version == net.version and address in net for net in _PRIVATE_NETWORKS)
    return not loopback or private or address.is_loopback or address.is_unspecified


def _target_host(target: str) -> list[str]:
    """Return the host of a request line with a whole URL, which counts before the Host header; none for a path."""
    if target.startswith("/") or target == "*":
        return []
    try:
        return [urlsplit(target).netloc]
    except ValueError:
        return [""]


def json_values() -> dict[str, Any]:
    """Return the object in the body of the current request, whatever its content type; raise ApiError."""
    body = whole_body()
    if request.headers.get("Content-Encoding", "").lower() == "zstd":  # which only some routes let through
        body = unpacked(body, min(MAX_UNPACKED_BYTES, request.max_content_length or MAX_UNPACKED_BYTES))
    if not body:
        raise bad_request("missing request body")
    try:
        values = json_value(body.decode())
    except RecursionError:
        raise bad_request("json: the body is nested too deeply") from None
    except UnicodeDecodeError as e:
        raise bad_request(f"json: byte {e.start} of the body is not UTF-8") from None
    except ValueError as e:  # also numbers of thousands of digits
        raise bad_request(f"json: {shown(str(e))}") from None
    if not isinstance(values, dict):
        raise bad_request("json: the body must be an object")
    return values


def json_value(text: str) -> Any:
    """Return the value of JSON text, no string with half a surrogate pair; raise ValueError, RecursionError."""
    return json.loads(_with_whole_pairs(text), parse_constant=_refuse_constant)


def whole_body() -> bytes:
    """Return the whole body of the current request; raise HTTPException (400, 413), which ends the connection."""
    try:
        body = request.get_data(cache=False)
    except HTTPException:
        raise
    except Exception as e:  # each server has its own for broken chunks and for clients that leave or stall
        raise BadRequest from e
    if request.max_content_length is not None and len(body) >= request.max_content_length:
        raise RequestEntityTooLarge
    if len(body) < (request.content_length or 0):
        raise BadRequest
    return body


def _origin_patterns(extra: list[str]) -> list[str]:
    """Return patterns of the allowed origins."""
    local = [rf"https?://{re.escape(host)}(:\d+)?" for host in _LOCAL_HOSTS]
    apps = [rf"{scheme}://.*" for scheme in _APP_SCHEMES]
    return local + apps + [re.escape(origin.strip()).replace(r"\*", ".*") for origin in extra if origin.strip()]


def _same_site(origin: str) -> bool:
    """Return whether a page that this server itself delivered makes the request."""
    host = request.environ.get("HTTP_HOST", "")
    return bool(host) and origin in (f"http://{host}", f"https://{host}")


def _without_port(host: str) -> str:
    if host.startswith("["):
        found = _BRACKETED.fullmatch(host)
        return found[1] if found else host
    name, colon, port = host.rpartition(":")
    return name if colon and port.isdigit() and ":" not in name else host


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _with_whole_pairs(text: str) -> str:
    """Return JSON in which each escape of half a surrogate pair is one of U+FFFD, as Go reads it."""
    if "\\ud" not in text and "\\uD" not in text:
        return text
    return _HALF_PAIR.sub(r"\\ufffd", text.replace(r"\\", r"\u005c"))
