"""Turn every failure into one HTTP answer: a status and an `{"error": text}` body."""

from __future__ import annotations

import re

from ollampi.api.engine_client import EngineError
from ollampi.mpiruntime.errors import BusyError, ModelError, OllampiError, RequestError

BUSY_TEXT = "server busy, please try again.  maximum pending requests exceeded"
INTERNAL_TEXT = "internal server error"
RETRY_AFTER_S = 5

_ENGINE_STATUS = {
    "absent": 404,
    "busy": 503,
    "conflict": 409,
    "shutdown": 503,
    "unavailable": 503,
    "restarting": 503,
    "ended": 503,
    "context": 400,
    "request": 400,
    "cancelled": 499,
    "timeout": 504,
    "memory": 500,
    "model": 500,
    "internal": 500,
}
MAX_MESSAGE_CHARS = 2000
# Folder names may hold blanks, so a path ends where a known kind of file does, or else with its clause (": " or "; ").
_CLAUSE = r"(?:(?![:;]\s)[^\n])*"
_FILE = rf"/{_CLAUSE}?\.(?:json|safetensors|jinja|gguf)(?:\.\w+)*(?!\w)"
_FOLDER = rf"/[^\s/](?:(?![:;]\s)[^\n/])*/{_CLAUSE}"
_PRIVATE = re.compile(rf"(?<![\w/:.])(?:(?P<file>{_FILE})|{_FOLDER})|\b0x[0-9a-fA-F]{{6,}}|unix:\S+")


class ApiError(OllampiError):
    """One HTTP answer: a status and a text for the client."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def bad_request(message: str) -> ApiError:
    """Return an error that is answered with 400 and `message`."""
    return ApiError(400, message)


def shown(text: str, limit: int = 200) -> str:
    """Return `text` short enough to stand in an error message."""
    return text if len(text) <= limit else text[:limit] + "..."


def public(message: str) -> str:
    """Return `message` without folders, memory addresses and socket names, and not longer than a client reads.

    Of a model's file the name stays.
    """
    return _PRIVATE.sub(_told, shown(message, MAX_MESSAGE_CHARS))


def _told(found: re.Match[str]) -> str:
    """Return what a client sees in the place of something private."""
    return found["file"].rpartition("/")[2] if found["file"] else "[hidden]"


def answer_for(error: Exception) -> tuple[int, str]:
    """Return the HTTP status and the error text for `error`."""
    if isinstance(error, ApiError):
        return error.status, str(error)
    if isinstance(error, EngineError):
        text = BUSY_TEXT if error.code == "busy" else public(str(error))
        return _ENGINE_STATUS.get(error.code, 500), text
    for kind, status in ((BusyError, 503), (RequestError, 400), (ModelError, 500)):
        if isinstance(error, kind):
            return status, BUSY_TEXT if kind is BusyError else public(str(error))
    return 500, INTERNAL_TEXT


def comes_back(error: Exception) -> bool:
    """Return whether it helps to ask again where `error` is answered with 503."""
    return not (isinstance(error, EngineError) and error.code == "ended")


def is_expected(error: Exception) -> bool:
    """Return whether `error` has an answer of its own; anything else is a fault of ours and worth a traceback."""
    return isinstance(error, ApiError | EngineError | RequestError | ModelError)
