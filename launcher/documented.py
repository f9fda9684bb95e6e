"""Tell each setting of `serve` with its default and its meaning, as conf/config.yaml has them beside each other."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from ollampi.launcher.settings import SETTINGS

_FILE = Path(__file__).resolve().parent.parent / "conf" / "config.yaml"
_LINE = re.compile(r"(?P<indent> *)(?P<name>\w+):(?: (?P<default>[^#]*?))?(?: # (?P<meaning>.*))?")


@dataclass(frozen=True)
class Documented:
    """A setting, its default as text, and what it means; meaning is empty where the name says all."""

    path: str
    default: str
    meaning: str


def documented() -> list[Documented]:
    """Return the settings in the file's order, without those that follow another one."""
    return [each for each in _all() if not each.default.startswith("$")]


def followed() -> dict[str, str]:
    """Return the settings that follow another one, with that one."""
    return {each.path: each.default[2:-1] for each in _all() if each.default.startswith("$")}


def _all() -> list[Documented]:
    """Return the settings in the file's order."""
    found, group = [], ""
    for line in _FILE.read_text(encoding="utf-8").splitlines():
        match = _LINE.fullmatch(line)
        if match is None:
            continue
        path = f"{group}.{match['name']}" if match["indent"] else match["name"]
        if not match["default"]:
            group = match["name"]
        elif path in SETTINGS:
            found.append(Documented(path, match["default"], match["meaning"] or ""))
    return found
