"""Look at every request before its route does: host name, origin, size, and that the body is a JSON object."""

from __future__ import annotations

import ipaddress
import json
import re
import socket
from typing import NoReturn

from flask import Flask, Response, request
from werkzeug.exceptions import BadRequest, HTTPException, RequestEntityTooLarge

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
    body = _body()
    if not body:
        raise bad_request("missing request body")
    try:
        values = json.loads(_with_whole_pairs(body.decode()), parse_constant=_refuse_constant)
    except RecursionError:
        raise bad_request("json: the body is nested too deeply") from None
    except UnicodeDecodeError as e:
        raise bad_request(f"json: byte {e.start} of the body is not UTF-8") from None
    except ValueError as e:  # also numbers of thousands of digits
        raise bad_request(f"json: {shown(str(e))}") from None
    if not isinstance(values, dict):
        raise bad_request("json: the body must be an object")
    return Fields(values)


def _body() -> bytes:
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
        return host.partition("]")[0] + "]"
    name, colon, port = host.rpartition(":")
    return name if colon and port.isdigit() and ":" not in name else host


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _with_whole_pairs(text: str) -> str:
    """Return JSON in which each escape of half a surrogate pair is one of U+FFFD, as Go reads it."""
    if "\\ud" not in text and "\\uD" not in text:
        return text
    return _HALF_PAIR.sub(r"\\ufffd", text.replace(r"\\", r"\u005c"))
