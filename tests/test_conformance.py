"""Every row of the API has a test, and docs/conformance.md lists all of them; benchmarks/conformance.py runs these."""

from __future__ import annotations

from support.conformance import DOCS, missing, read_rows, table


def test_every_row_has_a_test_or_waits_for_one() -> None:
    rows = read_rows()
    assert len({row.key for row in rows}) == len(rows)
    for row in rows:
        assert row.waits_for or not missing(row), f"{row.key}: {row.test} does not exist"


def test_the_docs_have_every_row() -> None:
    lines = [line for line in DOCS.read_text().splitlines() if line.startswith("| ") and not line.startswith("| Row")]
    ends = {line.split(" | ")[0].removeprefix("| "): line.rpartition(" | ")[2].removesuffix(" |") for line in lines}
    rows = read_rows()
    assert list(ends) == [row.key for row in rows]
    assert DOCS.read_text() == table(rows, ends), "run python benchmarks/conformance.py"
    for row in rows:
        assert ends[row.key] == "passed" or row.waits_for, row.key
