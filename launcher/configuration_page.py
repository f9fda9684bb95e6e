"""Make the tables of docs/configuration.md from those of the code.

`python -m ollampi.launcher.configuration_page docs/configuration.md` writes them anew between their marks.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from ollampi.launcher.documented import documented, followed
from ollampi.launcher.foreign import GROUPS, ROWS, Row
from ollampi.launcher.settings import SETTINGS


def tables() -> dict[str, str]:
    """Return the tables by their marks."""
    settings = [(f"`{each.path}`", f"`{each.default}`", each.meaning, _takes(each.path)) for each in documented()]
    settings += [(f"`{path}`", f"as `{other}`", "", _takes(path)) for path, other in followed().items()]
    groups = [(f"`{key}.*`, `OLLAMA_{key.upper()}_*`", reason) for key, reason in GROUPS.items()]
    return {
        "settings": _table(("Setting", "Default", "Meaning", "Takes"), settings),
        "names": _table(("Name", "Setting", "Read as"), [_told(row) for row in ROWS if row.paths]),
        "nothing": _table(("Name", "Why"), [*[(_names(row), row.meaning) for row in ROWS if not row.paths], *groups]),
    }


def filled(page: str) -> str:
    """Return a page with the tables between `<!-- NAME -->` and `<!-- end of NAME -->`."""
    for name, text in tables().items():
        begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
        before, _, rest = page.partition(begin)
        page = f"{before}{begin}\n{text}\n{end}{rest.partition(end)[2]}"
    return page


def _takes(path: str) -> str:
    return SETTINGS[path].takes


def _told(row: Row) -> tuple[str, str, str]:
    return _names(row), ", ".join(f"`{path}`" for path in row.paths), row.meaning or "the setting"


def _names(row: Row) -> str:
    return ", ".join(f"`{name}`" for name in (row.variable, row.key, row.option) if name)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)


def main(arguments: list[str]) -> None:
    """Write the tables into the page."""
    path = Path(arguments[0])
    path.write_text(filled(path.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
