"""Put a server's answers into the words and tables that Ollama's commands print."""

import json
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

# (up to this many seconds, seconds in the unit, unit)
_SPANS = (
    (60, 1, "second"),
    (3600, 60, "minute"),
    (48 * 3600, 3600, "hour"),
    (14 * 86400, 86400, "day"),
    (60 * 86400, 7 * 86400, "week"),
    (730 * 86400, 30 * 86400, "month"),
)
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_FOREVER_S = 20 * 365 * 86400


def one_line(text: str) -> str:
    """Return a server's text in one line, without characters that steer a terminal."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in " ".join(text.split()))


def printable(text: str) -> str:
    """Return a server's text without control characters other than line ends and tabs: they steer a terminal."""
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)


def scaled(size_bytes: int) -> tuple[float, str]:
    """Return a size as a number below 1000, where TB are enough for that, and its decimal unit."""
    value, unit = float(size_bytes), "B"
    for larger in ("KB", "MB", "GB", "TB"):
        if value < 1000:
            break
        value, unit = value / 1000, larger
    return value, unit


def human_size(size_bytes: int) -> str:
    """Return a size in decimal units as Ollama prints it: `11 MB`, `4.7 GB`."""
    value, unit = scaled(size_bytes)
    return f"{int(value)} {unit}" if value >= 10 or value == int(value) else f"{value:.1f} {unit}"


def human_time(stamp: str, now: datetime | None = None) -> str:
    """Return an RFC 3339 time relative to now: `2 hours ago`, `4 minutes from now`, `Forever`, `Never`."""
    if not stamp or stamp.startswith("0001-"):  # Go's zero time
        return "Never"
    when = datetime.fromisoformat(stamp)
    seconds = ((when if when.tzinfo else when.replace(tzinfo=UTC)) - (now or datetime.now(UTC))).total_seconds()
    if seconds > _FOREVER_S:
        return "Forever"
    return f"{_span(abs(seconds))} {'from now' if seconds > 0 else 'ago'}"


def _span(seconds: float) -> str:
    if seconds < 1:
        return "Less than a second"
    size_s, unit = next(((size, unit) for limit, size, unit in _SPANS if seconds < limit), (365 * 86400, "year"))
    count = int(seconds // size_s)
    if count == 1 and unit in ("minute", "hour"):
        return "About an hour" if unit == "hour" else "About a minute"
    return f"{count} {unit}{'' if count == 1 else 's'}"


def human_duration(duration_ns: int) -> str:
    """Return a duration as Go prints it: `850ns`, `210ms`, `1.5s`, `2m3.5s`, `1h0m0s`."""
    if duration_ns < 10**9:
        size, unit = (10**6, "ms") if duration_ns >= 10**6 else (10**3, "µs") if duration_ns >= 10**3 else (1, "ns")
        return f"{duration_ns / size:.9g}{unit}" if duration_ns else "0s"
    minutes, rest_ns = divmod(duration_ns, 60 * 10**9)
    hours, minutes_left = divmod(minutes, 60)
    seconds = f"{rest_ns / 10**9:.9f}".rstrip("0").rstrip(".")
    return (f"{hours}h" if hours else "") + (f"{minutes_left}m" if minutes else "") + f"{seconds}s"


def processor(model: Mapping[str, Any]) -> str:
    """Return where a loaded model lies: `100% CPU`, `100% GPU` or `48%/52% CPU/GPU`."""
    size, on_gpu = int(model.get("size") or 0), int(model.get("size_vram") or 0)
    if on_gpu == 0:
        return "100% CPU"
    if on_gpu > size:
        return "Unknown"
    cpu = round(100 * (size - on_gpu) / size)
    return "100% GPU" if on_gpu == size else f"{cpu}%/{100 - cpu}% CPU/GPU"


def table(rows: Sequence[Sequence[str]], indent: str = "") -> str:
    """Return the rows with their columns aligned, four blanks apart, a line end after each."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("    ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "".join(f"{indent}{line}".rstrip() + "\n" for line in lines)


def timings(final: Mapping[str, Any]) -> str:
    """Return the lines of `--verbose` for an answer's last object; what the server left out is left out."""
    rows = []
    for label, name in (("total", "total"), ("load", "load"), ("prompt eval", "prompt_eval"), ("eval", "eval")):
        duration, count = final.get(f"{name}_duration") or 0, final.get(f"{name}_count") or 0
        rows += [(f"{label} count:", f"{count} token(s)")] if count else []
        rows += [(f"{label} duration:", human_duration(duration))] if duration else []
        rows += [(f"{label} rate:", f"{count * 1e9 / duration:.2f} tokens/s")] if count and duration else []
    return "".join(f"{label:<21} {value}\n" for label, value in rows)


def show_text(answer: Mapping[str, Any], verbose: bool = False) -> str:
    """Return what `show` prints of a model: sections of an /api/show answer, with every fact when verbose."""
    parameters = [line.split(maxsplit=1) for line in (answer.get("parameters") or "").splitlines() if line.strip()]
    sections: list[tuple[str, list[Sequence[str]]]] = [
        ("Model", _model_rows(answer)),
        ("Capabilities", [[name] for name in answer.get("capabilities") or []]),
        ("Parameters", [[name, *rest] if rest else [name, ""] for name, *rest in parameters]),
        ("System", _first_lines(answer.get("system") or "")),
        ("License", _first_lines(_joined(answer.get("license")))),
    ]
    if verbose:
        info = answer.get("model_info") or {}
        sections.append(("Metadata", [(name, _short(value)) for name, value in info.items()]))
        tensors = answer.get("tensors") or []
        sections.append(("Tensors", [(t["name"], str(t["type"]), str(t["shape"])) for t in tensors]))
    return "\n".join(f"  {title}\n{table(rows, '    ')}" for title, rows in sections if rows)


def _model_rows(answer: Mapping[str, Any]) -> list[Sequence[str]]:
    details, info = answer.get("details") or {}, answer.get("model_info") or {}
    family = info.get("general.architecture") or details.get("family") or ""
    facts = {
        "architecture": family,
        "parameters": details.get("parameter_size") or info.get("general.parameter_count"),
        "context length": info.get(f"{family}.context_length") or details.get("context_length"),
        "embedding length": info.get(f"{family}.embedding_length") or details.get("embedding_length"),
        "quantization": details.get("quantization_level"),
    }
    return [(name, str(value)) for name, value in facts.items() if value]


def _joined(license_text: str | Sequence[str] | None) -> str:
    return license_text if isinstance(license_text, str) else "\n".join(license_text or [])


def _first_lines(text: str) -> list[Sequence[str]]:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return [[line] for line in ([*lines[:2], "..."] if len(lines) > 2 else lines)]


def _short(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."
