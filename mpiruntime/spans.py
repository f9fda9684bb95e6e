"""Read durations as Go writes them: 1h30m, 5s, 500ms."""

from __future__ import annotations

import re

NANOSECOND_S = 1e-9
_UNITS_S = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_PART = r"(\d{1,30}(?:\.\d{0,30})?|\.\d{1,30})(ns|us|µs|μs|ms|s|m|h)"
_DURATION = re.compile(rf"[-+]?(?:{_PART})+", re.ASCII)


def go_seconds(text: str) -> float:
    """Return the seconds of a Go duration such as 1h30m; "0" needs no unit. Raise ValueError."""
    if text in ("0", "+0", "-0"):
        return 0.0
    if len(text) > 100 or not _DURATION.fullmatch(text):
        raise ValueError(text)
    total = sum(float(number) * _UNITS_S[unit] for number, unit in re.findall(_PART, text, re.ASCII))
    return -total if text.startswith("-") else total


def span_seconds(text: str) -> float:
    """Return the seconds of a Go duration, or of a whole number of nanoseconds; raise ValueError."""
    return int(text) * NANOSECOND_S if text.isascii() and text.isdigit() and len(text) < 30 else go_seconds(text)
