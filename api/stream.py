"""Write answers: one JSON object, or one JSON object per line while the answer grows."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any

from flask import Response

from ollampi.api.errors import answer_for, is_expected

NDJSON = "application/x-ndjson"
JSON = "application/json; charset=utf-8"

_log = logging.getLogger(__name__)


def encode(value: object) -> str:
    """Return compact JSON on one line."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


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


def ndjson_answer(objects: Iterator[dict[str, Any]], on_close: Callable[[], None]) -> Response:
    """Return objects as lines; wait for the first, so that a failure before it keeps its own status.

    on_close runs when the answer is complete, failed, or its client is gone.
    """
    try:
        first = next(objects)
    except BaseException:
        on_close()
        raise
    response = Response(_lines(chain([first], objects)), content_type=NDJSON)
    response.call_on_close(on_close)
    return response


def _lines(objects: Iterator[dict[str, Any]]) -> Iterator[str]:
    """Yield one line per object; a failure becomes the last line, because the status is already sent."""
    try:
        for value in objects:
            yield encode(value) + "\n"
    except Exception as e:
        if not is_expected(e):
            _log.exception("a stream failed")
        yield encode({"error": answer_for(e)[1]}) + "\n"
