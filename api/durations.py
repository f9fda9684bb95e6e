"""Read keep_alive values and write the time stamps of Ollama's answers."""

from __future__ import annotations

import math
import re
import time
from datetime import UTC, datetime
from functools import lru_cache

from ollampi.api.errors import bad_request, shown

FOREVER_S = 292 * 365 * 86400.0  # how far away Go's clients see "never"
_MAX_S = 2**63 / 1e9  # a Go duration is a signed 64-bit number of nanoseconds
_UNITS_S = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_PART = r"(\d{1,30}(?:\.\d{0,30})?|\.\d{1,30})(ns|us|µs|μs|ms|s|m|h)"
_DURATION = re.compile(rf"[-+]?(?:{_PART})+", re.ASCII)


def parse_keep_alive(value: object) -> float | None:
    """Return seconds, -1.0 for "for ever", or None where nothing was said; raise ApiError (400)."""
    if value is None:
        return None
    if isinstance(value, str):
        seconds = _parse_duration(value)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        seconds = _seconds(value)
    else:
        raise bad_request("keep_alive must be a number of seconds or a duration such as 5m")
    if seconds > _MAX_S:
        raise bad_request("keep_alive is longer than 292 years; use a negative number for ever")
    return -1.0 if seconds < 0 else seconds


def span_s(text: str) -> float:
    """Return the seconds of a span with units as Go writes it, such as 1h30m or 250ms; raise ValueError."""
    if len(text) > 100 or not _DURATION.fullmatch(text):
        raise ValueError(text)
    total = sum(float(number) * _UNITS_S[unit] for number, unit in re.findall(_PART, text, re.ASCII))
    return -total if text.startswith("-") else total


def now_text() -> str:
    """Return the present in UTC with nanoseconds: 2026-01-02T03:04:05.000000006Z."""
    seconds, nanoseconds = divmod(time.time_ns(), 10**9)
    return f"{_second_text(seconds)}.{nanoseconds:09d}Z"


def local_text(seconds: float) -> str:
    """Return epoch seconds in the local zone with microseconds and offset, as datetime.fromisoformat reads them."""
    return datetime.fromtimestamp(seconds).astimezone().isoformat(timespec="microseconds")


@lru_cache(maxsize=2)
def _second_text(seconds: int) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}"


def _seconds(value: float) -> float:
    """Return a JSON number as a float; an integer too big for one counts as infinite."""
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def _parse_duration(text: str) -> float:
    """Return the seconds of a Go duration such as 1h30m; "0" needs no unit."""
    if text in ("0", "+0", "-0"):
        return 0.0
    try:
        return span_s(text)
    except ValueError:
        raise bad_request(
            f'invalid duration "{shown(text, 50)}"; write a number of seconds or, say, "5m" or "1h30m"'
        ) from None
