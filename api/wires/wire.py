"""Say how each wire (Ollama's, OpenAI's, Anthropic's) writes an error: its body, and its last line in a stream."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ollampi.api.stream import encode

VERSION_HEADER = "Anthropic-Version"  # all of Anthropic's clients send it
_JSON = dict[str, Any]
_OPENAI_TYPES = {400: "invalid_request_error", 404: "not_found_error"}
_ANTHROPIC_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    529: "overloaded_error",
}


@dataclass(frozen=True)
class Wire:
    """One API: `error` makes the body of an answer with this status, text and request id."""

    name: str
    error: Callable[[int, str, str], _JSON]


def ollama_error(status: int, text: str, request_id: str) -> _JSON:
    """Return Ollama's error object."""
    return {"error": text}


def openai_error(status: int, text: str, request_id: str) -> _JSON:
    """Return OpenAI's error object."""
    kind = _OPENAI_TYPES.get(status, "api_error")
    return {"error": {"message": text, "type": kind, "param": None, "code": None}}


def anthropic_error(status: int, text: str, request_id: str) -> _JSON:
    """Return Anthropic's error object."""
    error = {"type": _ANTHROPIC_TYPES.get(status, "api_error"), "message": text}
    return {"type": "error", "error": error, "request_id": request_id}


OLLAMA = Wire("ollama", ollama_error)
OPENAI = Wire("openai", openai_error)
ANTHROPIC = Wire("anthropic", anthropic_error)


def wire_of(path: str, version: str | None = None) -> Wire:
    """Return the wire that a path belongs to, whether or not there is such a route.

    version: what the request's header of that name says. /v1/models is on two wires.
    """
    if path.startswith("/v1/messages") or (path.startswith("/v1/models") and version is not None):
        return ANTHROPIC
    return OPENAI if path.startswith("/v1/") else OLLAMA


def server_sent(value: object, event: str = "") -> str:
    """Return one server-sent event."""
    head = f"event: {event}\n" if event else ""
    return f"{head}data: {encode(value)}\n\n"
