"""Write answers: one JSON object, or one JSON object per line while the answer grows."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from itertools import chain
from typing import NamedTuple

from flask import Response

from ollampi.api.errors import answer_for, is_expected

JSON = "application/json; charset=utf-8"

_ENCODER = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))  # json.dumps would make one on every call
_log = logging.getLogger(__name__)


def encode(value: object) -> str:
    """Return compact JSON on one line, also for clients that take Unicode's other line ends for some (httpx does)."""
    text = _ENCODER.encode(value)
    if text.isascii():
        return text
    return text.replace("\x85", "\\u0085").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def line_of(value: object) -> str:
    """Return one line of NDJSON."""
    return encode(value) + "\n"


class Form(NamedTuple):
    """How an answer is written while it grows: its content type, and its last text where it fails: status, message."""

    content_type: str
    failure: Callable[[int, str], str]


NDJSON = Form("application/x-ndjson", lambda status, text: line_of({"error": text}))


def json_answer(value: object, status: int = 200) -> Response:
    """Return one JSON object as a whole answer."""
    return text_answer(encode(value), status)


def text_answer(text: str, status: int = 200) -> Response:
    """Return JSON that is written already as a whole answer."""
    return Response(text, status, content_type=JSON)


def warned(response: Response, ignored: list[str]) -> Response:
    """Return the response with a header that names the options which had no effect."""
    names = [name for name in ignored if name.isascii() and name.isidentifier() and len(name) <= 40][:20]
    if names:
        response.headers["Warning"] = f'299 ollampi "ignored options: {", ".join(names)}"'
    return response


def growing_answer(lines: Iterator[str], form: Form, on_close: Callable[[], None]) -> Response:
    """Return lines as an answer that grows; wait for the first, so that a failure before it keeps its own status.

    on_close runs when the answer is complete, failed, or its client is gone.
    """
    try:
        first = next(lines)
    except BaseException:
        on_close()
        raise
    response = Response(_to_the_end(chain([first], lines), form), content_type=form.content_type)
    response.call_on_close(on_close)
    return response


def _to_the_end(lines: Iterator[str], form: Form) -> Iterator[str]:
    """Yield the lines; a failure becomes the last one, because the status is already sent."""
    try:
        yield from lines
    except OSError:  # of the client's connection
        raise
    except Exception as e:
        if not is_expected(e):
            _log.exception("a stream failed")
        yield form.failure(*answer_for(e))
