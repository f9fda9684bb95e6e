"""Print every setting with its value and where that comes from: `python -m ollampi.launcher.config_show`.

`ollampi config show` becomes this program, which takes the time that a configuration takes.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from operator import attrgetter

from ollampi.launcher.config import compose_given
from ollampi.launcher.documented import followed
from ollampi.launcher.given import Given, given
from ollampi.launcher.kinds import Value
from ollampi.launcher.settings import SETTINGS
from ollampi.launcher.words import table
from ollampi.mpiruntime.errors import OllampiError

DEFAULT = "default"
_JSON = "--json"


def effective(found: Given) -> dict[str, tuple[Value, str]]:
    """Return the value of every setting and where it comes from; raise ConfigError."""
    config, follows = compose_given(found), followed()
    rows = {}
    for path in SETTINGS:
        source = found.sources.get(path, DEFAULT)
        if source == DEFAULT and path in follows:
            source = f"as {follows[path]}"
        rows[path] = (attrgetter(path)(config), source)
    return rows


def told(arguments: Sequence[str], environ: Mapping[str, str]) -> str:
    """Return what is printed for settings, as on the command line of `serve`, and --json; raise ConfigError."""
    found = given([each for each in arguments if each != _JSON], environ)
    rows = effective(found)
    if _JSON in arguments:
        settings = {path: {"value": value, "source": source} for path, (value, source) in rows.items()}
        return json.dumps({"settings": settings, "warnings": found.warnings}, indent=2, ensure_ascii=False) + "\n"
    shown = [(path, json.dumps(value, ensure_ascii=False), source) for path, (value, source) in rows.items()]
    warnings = "".join(f"\n{warning}" for warning in found.warnings)
    return table([("SETTING", "VALUE", "FROM"), *shown]) + (f"{warnings}\n" if warnings else "")


def main(arguments: list[str]) -> None:
    """Print the settings; the exit status is 1 where one cannot be used."""
    try:
        print(told(arguments, os.environ), end="")
    except OllampiError as e:
        print(f"Error: {e}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main(sys.argv[1:])
