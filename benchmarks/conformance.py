"""Write docs/conformance.md: each row of the API, the test that covers it, and what pytest says of that test now.

    python benchmarks/conformance.py [--check]

The rows are in tests/conformance/*.toml: what the row says, its test, and, while that is not there, where it is made.
With --check nothing is written, and the end is status 1 where a row has no test, a test fails, or the docs differ.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from support.conformance import DOCS, Row, missing, read_rows, table  # noqa: E402


class Outcomes:
    """A plugin of pytest that keeps how each test ended."""

    def __init__(self) -> None:
        self.by_test: dict[str, set[str]] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note the call of a test, and what kept it from being called."""
        if report.when == "call" or report.outcome != "passed":
            expected = hasattr(report, "wasxfail")
            self.by_test.setdefault(report.nodeid, set()).add("expected failure" if expected else report.outcome)

    def of(self, test: str) -> str:
        """Return passed, or what else became of a test and its variants."""
        found = set().union(*(ends for name, ends in self.by_test.items() if name.split("[")[0] == test.split("[")[0]
                              and (name == test or "[" not in test)))  # fmt: skip
        return "passed" if found == {"passed"} else ", ".join(sorted(found - {"passed"})) or "not run"


def run(rows: list[Row]) -> dict[str, str]:
    """Return what pytest says of each test of the rows."""
    outcomes = Outcomes()
    os.chdir(ROOT)
    pytest.main(["-q", "--no-header", "-p", "no:cacheprovider", *sorted({row.test for row in rows})], [outcomes])
    return {row.test: outcomes.of(row.test) for row in rows}


def end_of(row: Row, results: dict[str, str]) -> str:
    """Return what became of a row: passed, pending, or what is wrong."""
    end = results.get(row.test, "does not exist")
    return "pending" if row.waits_for and end in ("does not exist", "expected failure") else end


def main() -> None:
    """Do what the arguments ask for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    rows = read_rows()
    results = run([row for row in rows if not missing(row)])
    ends = {row.key: end_of(row, results) for row in rows}
    text = table(rows, ends)
    faults = [f"{row.key}: {row.test}: {ends[row.key]}" for row in rows if ends[row.key] not in ("passed", "pending")]
    for row in rows:
        if ends[row.key] == "pending":
            print(f"pending {row.key}: {row.test} waits for {row.waits_for}")
        elif row.waits_for:
            print(f"{row.key} waits for nothing any more: drop its last entry, {row.waits_for!r}")
    if not args.check:
        DOCS.write_text(text)
    elif not DOCS.is_file() or DOCS.read_text() != text:
        faults.append(f"{DOCS.relative_to(ROOT)} differs: run python benchmarks/conformance.py")
    counts = Counter(ends.values())
    print(f"{len(rows)} rows: " + ", ".join(f"{count} {end}" for end, count in sorted(counts.items())))
    for fault in faults:
        print(fault)
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
