"""Read the rows of the API in tests/conformance, and write them as the table of docs/conformance.md."""

from __future__ import annotations

import ast
import tomllib
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT / "tests" / "conformance"
DOCS = ROOT / "docs" / "conformance.md"
_HEAD = """# Conformance

Each row of the API, as its documentation and its source have it, with the test that covers it. Made by
`python benchmarks/conformance.py`, which runs the tests; the rows are in `tests/conformance/`. Rows marked *ours* are
not in the original; *cloud only* are routes that need Ollama's cloud, which this server does not use.
"""


@dataclass(frozen=True)
class Row:
    """One fact about the API: its name, what it says, the id of its test, and who still has to make that."""

    section: str
    key: str
    text: str
    test: str
    waits_for: str = ""


def read_rows() -> list[Row]:
    """Return all rows in order; raise ValueError where one is not [text, test] or [text, test, who makes it]."""
    rows = []
    for path in sorted(DATA.glob("*.toml")):
        section = tomllib.loads(path.read_text())
        for name, entry in section["rows"].items():
            key = f"{path.stem.partition('-')[2]}.{name}"
            if len(entry) not in (2, 3) or not all(isinstance(part, str) and part for part in entry):
                raise ValueError(f"{key} must be a list of its text, its test, and who makes that if it is not there")
            text, test, *more = entry
            rows.append(Row(section["title"], key, text, f"tests/{test}", *more))
    return rows


def missing(row: Row) -> bool:
    """Return whether there is no function with the name of the row's test."""
    file, _, name = row.test.partition("::")
    path = ROOT / file
    if not path.is_file():
        return True
    tree = ast.parse(path.read_text())
    wanted = name.split("[")[0]
    return not any(isinstance(node, ast.FunctionDef) and node.name == wanted for node in tree.body)


def table(rows: list[Row], results: dict[str, str]) -> str:
    """Return the document; `results` are by key."""
    counts = {end: list(results.values()).count(end) for end in sorted(set(results.values()))}
    parts = [_HEAD, f"{len(rows)} rows: {', '.join(f'{count} {end}' for end, count in counts.items())}."]
    section = ""
    for row in rows:
        if row.section != section:
            section = row.section
            parts.append(f"\n## {section}\n\n| Row | What | Test | |\n|---|---|---|---|")
        what = row.text.replace("|", "\\|")
        parts.append(f"| {row.key} | {what} | `{row.test.removeprefix('tests/')}` | {results[row.key]} |")
    return "\n".join(parts) + "\n"
