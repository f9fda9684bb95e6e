"""Read a Modelfile: https://github.com/ollama/ollama/blob/main/docs/modelfile.mdx.

A line is a command and its value; commands may be written in any case. A value in quotes, or in three, goes on over
lines until they close; there is no escape. A line that begins with # is a comment, a # behind a value belongs to it.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator
from dataclasses import dataclass

from ollampi.launcher.client import Json
from ollampi.launcher.parameters import GONE, parse_parameter
from ollampi.mpiruntime.errors import ConfigError

MAX_BYTES = 16 << 20
COMMANDS = (
    "FROM",
    "PARAMETER",
    "TEMPLATE",
    "SYSTEM",
    "ADAPTER",
    "LICENSE",
    "MESSAGE",
    "REQUIRES",
    "RENDERER",
    "PARSER",
)
_LAST_WINS = {"TEMPLATE": "template", "SYSTEM": "system", "RENDERER": "renderer", "PARSER": "parser"}
_ROLES = ("system", "user", "assistant")
_VERSION = re.compile(r"v?\d+\.\d+\.\d+(?:[-+][0-9A-Za-z.+-]+)?")
_ENCODINGS = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"))
_NO_DRAFT = "DRAFT is not supported: the server proposes tokens with the model that it is started with (draft=PATH)"


@dataclass(frozen=True)
class Line:
    """A command, its value, and the number of the line that it begins on."""

    number: int
    command: str
    value: str


@dataclass(frozen=True)
class Modelfile:
    """What a Modelfile says: the sources (FROM and ADAPTER), the fields of /api/create, and warnings."""

    sources: list[Line]
    fields: Json
    warnings: list[str]


def decode(data: bytes) -> str:
    """Return the text of a Modelfile, in UTF-8 or, behind a mark, in UTF-16; raise ConfigError."""
    mark, encoding = next(((m, name) for m, name in _ENCODINGS if data.startswith(m)), (b"", "utf-8"))
    try:
        return data[len(mark) :].decode(encoding)
    except UnicodeDecodeError as error:
        where = data[: error.start].count(b"\n") + 1
        raise ConfigError(f"line {where} is no text in {encoding.upper()}; save the Modelfile as UTF-8") from error


def parse(text: str) -> Modelfile:
    """Return what a Modelfile says; raise ConfigError with the line that cannot be used."""
    sources, fields, warnings = list[Line](), Json(), list[str]()
    for line in _lines(text):
        try:
            if line.command in ("FROM", "ADAPTER"):
                sources.append(line)
            elif line.command == "PARAMETER":
                warnings += _parameter(fields, line.value)
            else:
                _field(fields, line)
        except ConfigError as error:
            raise ConfigError(f"line {line.number}: {error}") from error
    if not any(line.command == "FROM" for line in sources):
        raise ConfigError("no FROM line: name the model to start from, or its file or folder")
    return Modelfile(sources, fields, warnings)


def _lines(text: str) -> Iterator[Line]:
    """Yield the commands with their values, quotes taken away; raise ConfigError."""
    lines = enumerate(re.split(r"\r?\n", text), 1)
    for number, raw in lines:
        word, value = _word(raw)
        if not word or word.startswith("#"):
            continue
        command = word.upper()
        if command not in COMMANDS:
            reason = _NO_DRAFT if command == "DRAFT" else f"{word[:40]!r} is no command; use {', '.join(COMMANDS)}"
            raise ConfigError(f"line {number}: {reason}")
        first, value = _word(value) if command in ("PARAMETER", "MESSAGE") else ("", value)
        if not value.strip():
            raise ConfigError(f"line {number}: {command} {first}".rstrip() + " has no value")
        while (inner := _unquoted(value)) is None:
            following = next(lines, None)
            if following is None:
                quotes = '"""' if value.startswith('"""') else '"'
                raise ConfigError(f"line {number}: the {quotes} of {command} is never closed")
            value = f"{value}\n{following[1]}"
        yield Line(number, command, f"{first} {inner}" if first else inner)


def _word(text: str) -> tuple[str, str]:
    """Return the first word of a line, and what follows its blanks."""
    word, *rest = text.lstrip().split(maxsplit=1) or [""]
    return word, rest[0] if rest else ""


def _unquoted(value: str) -> str | None:
    """Return a value without its quotes, None where they are not closed yet."""
    closed = value.rstrip()
    for quotes in ('"""', '"'):
        if closed.startswith(quotes):
            end = closed.endswith(quotes) and len(closed) >= 2 * len(quotes)
            return closed[len(quotes) : -len(quotes)] if end else None
    return closed


def _parameter(fields: Json, value: str) -> list[str]:
    """Note a parameter, and return a warning where it has no effect any more; several stops make a list."""
    name, _, text = value.partition(" ")
    name = name.lower()
    if name in GONE:
        return [f"parameter {name} is deprecated and left out"]
    parsed, parameters = parse_parameter(name, [text]), fields.setdefault("parameters", {})
    parameters[name] = parameters.get(name, []) + parsed if isinstance(parsed, list) else parsed
    return []


def _field(fields: Json, line: Line) -> None:
    """Note a command that stands for a field of the request."""
    if line.command in _LAST_WINS:
        fields[_LAST_WINS[line.command]] = line.value
    elif line.command == "LICENSE":
        fields.setdefault("license", []).append(line.value)
    elif line.command == "REQUIRES":
        if not _VERSION.fullmatch(line.value):
            raise ConfigError(f"REQUIRES is {line.value[:40]!r}; it must be a version such as 0.14.0")
        fields["requires"] = line.value
    else:
        role, _, content = line.value.partition(" ")
        if role.lower() not in _ROLES:
            raise ConfigError(f"the role of MESSAGE is {role[:40]!r}; it must be one of {', '.join(_ROLES)}")
        fields.setdefault("messages", []).append({"role": role.lower(), "content": content})
