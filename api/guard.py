"""Look at every request before its route does: host name, origin, size, and that the body is a JSON object."""

from __future__ import annotations

import ipaddress
import json
import re
import socket
from typing import Any, NoReturn

from flask import Flask, Response, request
from werkzeug.exceptions import RequestEntityTooLarge

from ollampi.api.errors import ApiError, bad_request, shown
from ollampi.api.fields import Fields
from ollampi.api.settings import Settings

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
_SURROGATE = re.compile("[\ud800-\udfff]")


def install_guard(app: Flask, settings: Settings) -> None:
    """Make `app` check every request and add the CORS headers to every answer."""
    app.config["MAX_CONTENT_LENGTH"] = settings.max_body_bytes + 1  # a chunked body that reaches it is too large
    origins = [re.compile(pattern, re.IGNORECASE) for pattern in _origin_patterns(settings.origins)]

    @app.before_request
    def check() -> Response | None:
        """Return the answer to a request that no route may see, else None."""
        origin = request.headers.get("Origin")
        if origin and not _same_site(origin) and not any(p.fullmatch(origin) for p in origins):
            return Response(status=403)
        if settings.loopback and not host_allowed(request.environ.get("HTTP_HOST", "")):
            return Response(status=403)
        if request.method == "OPTIONS":
            return Response(status=204)
        if request.headers.get("Content-Encoding", "identity").lower() not in ("", "identity"):
            raise ApiError(415, "the request body must not be compressed; send it without Content-Encoding")
        return None

    @app.after_request
    def allow_origin(response: Response) -> Response:
        """Return the response with what a browser wants to know."""
        origin = request.headers.get("Origin")
        if origin and response.status_code != 403 and not _same_site(origin):
            response.headers["Access-Control-Allow-Origin"] = origin
            response.headers["Vary"] = "Origin"
            if request.method == "OPTIONS":
                response.headers["Access-Control-Allow-Methods"] = _METHODS
                response.headers["Access-Control-Allow-Headers"] = _HEADERS
                response.headers["Access-Control-Max-Age"] = "43200"
        return response


def host_allowed(header: str) -> bool:
    """Return whether a Host header names this machine or a private address."""
    host = _without_port(header.strip().lower())
    try:
        address = ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        own = socket.gethostname().lower()
        return host in ("localhost", own) or host.endswith((".localhost", ".local", ".internal"))
    private = any(address.version == net.version and address in net for net in _PRIVATE_NETWORKS)
    return private or address.is_loopback or address.is_unspecified


def json_body() -> Fields:
    """Return the body of the current request as fields, whatever its content type; raise ApiError."""
    body = request.get_data(cache=False)
    if request.max_content_length is not None and len(body) >= request.max_content_length:
        raise RequestEntityTooLarge
    if not body:
        raise bad_request("missing request body")
    try:
        values = json.loads(body, parse_constant=_refuse_constant)
        if b"\\u" in body or b"\\U" in body:
            values = _without_surrogates(values)
    except RecursionError:
        raise bad_request("json: the body is nested too deeply") from None
    except ValueError as e:  # also what is not UTF-8, and numbers of thousands of digits
        raise bad_request(f"json: {shown(str(e))}") from None
    if not isinstance(values, dict):
        raise bad_request("json: the body must be an object")
    return Fields(values)


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
        return host.partition("]")[0] + "]"
    name, colon, port = host.rpartition(":")
    return name if colon and port.isdigit() and ":" not in name else host


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _without_surrogates(value: Any) -> Any:
    """Return a JSON value whose strings are valid Unicode: half a surrogate pair becomes U+FFFD, as in Go."""
    if isinstance(value, str):
        return _SURROGATE.sub("\ufffd", value)
    if isinstance(value, list):
        return [_without_surrogates(item) for item in value]
    if isinstance(value, dict):
        return {_without_surrogates(key): _without_surrogates(item) for key, item in value.items()}
    return value
