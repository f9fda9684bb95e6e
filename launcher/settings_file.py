"""Read a file of settings: JSON, in which // begins a comment, or YAML."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

from ollampi.launcher.foreign import GROUPS, ROWS
from ollampi.launcher.settings import SETTINGS, unknown
from ollampi.mpiruntime.errors import ConfigError, short
from ollampi.mpiruntime.strict_json import unique

MAX_BYTES = 1 << 20
_COMMENT = re.compile(r'("(?:[^"\\\n]|\\.)*")|//[^\n]*')
_KEYS = frozenset(row.key for row in ROWS if row.key)


def read_file(given: str) -> list[tuple[str, object]]:
    """Return the keys of a file, with dots where they are in each other, and their values; raise ConfigError."""
    path = Path(os.path.abspath(os.path.expanduser(given)))
    try:
        if not path.is_file():  # opening a pipe would block for ever
            raise ConfigError(
                f"--config names {short(str(path))}, which is no file; give the path of a JSON or YAML file"
            )
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
        text = raw.decode()
    except OSError as e:
        raise ConfigError(
            f"--config names {short(str(path))}, which cannot be read: {e.strerror}; every host needs it"
        ) from e
    except UnicodeDecodeError as e:
        raise ConfigError(f"{path} is no text: byte {e.start} is not UTF-8") from e
    if len(raw) > MAX_BYTES:
        raise ConfigError(f"{path} has more than {MAX_BYTES} bytes, and more in it than it can need")
    try:
        values = _yaml(text) if path.suffix.lower() in (".yaml", ".yml") else _json(text)
    except (ValueError, RecursionError) as e:
        raise ConfigError(f"{path} cannot be read: {' '.join(str(e).split())}; correct it there") from e
    if not isinstance(values, dict):
        raise ConfigError(f'{path} is no object; write settings such as {{"server": {{"port": 11500}}}}')
    try:
        keys = list(_flat(values, "", path))
    except RecursionError:
        raise ConfigError(f"{path} is nested too deeply, or holds itself; write settings below each other") from None
    names = [key for key, _ in keys]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ConfigError(f"{path}: {twice[0]} comes twice; write it once, with a dot or in its group")
    return keys


def _json(text: str) -> object:
    """Return the value of JSON text with comments; raise ValueError."""
    return (
        json.loads(_COMMENT.sub(lambda found: found[1] or "", text), object_pairs_hook=unique) if text.strip() else {}
    )


def _yaml(text: str) -> object:
    """Return the value of YAML text; raise ValueError."""
    yaml = import_module("yaml")  # here: it takes as long as all else that a command needs
    try:
        nodes, seen = [yaml.compose(text, Loader=yaml.SafeLoader)], set()
        while nodes:  # as in JSON no key may come twice
            node = nodes.pop()
            if id(node) not in seen and isinstance(node, yaml.CollectionNode):
                seen.add(id(node))  # aliases lead to the same nodes
                pairs = node.value if isinstance(node, yaml.MappingNode) else [(None, part) for part in node.value]
                unique([(str(key.value), None) for key, _ in pairs if key is not None])
                nodes += [part for _, part in pairs]
        values: object = yaml.safe_load(text)
    except yaml.YAMLError as e:
        raise ValueError(str(e)) from e
    return {} if values is None else values


def _flat(values: dict[object, object], where: str, path: Path) -> Iterator[tuple[str, object]]:
    """Yield the keys below a group; raise ConfigError for one that nobody knows."""
    for name, value in values.items():
        key = f"{where}{name}"
        if key in _KEYS or key in SETTINGS or key in GROUPS:
            yield key, value
        elif isinstance(value, dict) and (value or any(known.startswith(f"{key}.") for known in (*_KEYS, *SETTINGS))):
            yield from _flat(value, f"{key}.", path)
        else:
            raise ConfigError(f"{path}: {unknown(key)}")
