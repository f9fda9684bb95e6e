"""Write what a sweep measured: CSV, Markdown, lines for benchstat, plots, and a recommendation."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sweep_advice import advice
from sweep_figures import Figure, answer_s, first_s, of_record, speedups, split, token_s, tokens_per_s
from sweep_plots import MISSING, draw, has_matplotlib
from sweep_points import AXES
from sweep_records import NAME, Record, merged

_MIB = 2**20
_SHARES = ("compute", "exchange", "wait", "other")


@dataclass(frozen=True)
class Report:
    """The texts of a report, and the records that its plots show."""

    records: list[Record]
    csv: str
    markdown: str
    bench: str
    advice: str

    def write(self, folder: Path) -> list[str]:
        """Write all of it into a folder; return lines about what is there."""
        folder.mkdir(parents=True, exist_ok=True)
        plots = draw(self.records, folder) if has_matplotlib() else []
        shown = "".join(f"\n![{path.stem}]({path.name})\n" for path in plots)
        texts = {"csv": self.csv, "md": f"{self.markdown}{shown}\n{self.advice}\n", "bench.txt": self.bench}
        for ending, text in texts.items():
            (folder / f"{NAME}.{ending}").write_text(text)
        written = [f"{NAME}.{ending}" for ending in texts] + [path.name for path in plots]
        return [f"report in {folder}: {', '.join(written)}", *([] if has_matplotlib() else [MISSING])]


def report(records: Sequence[Record]) -> Report:
    """Return the report of some records; it follows from these alone."""
    records = merged(records)
    return Report(records, table_csv(records), markdown(records), benchstat(records), advice(records))


def table_csv(records: Sequence[Record]) -> str:
    """Return a row for each point; times in seconds, sizes in bytes; the middle, the least and the most repeat."""
    names = ("first_s", "token_s", "answer_s", "tokens_per_s")
    columns = [f"{name}{ending}" for name in names for ending in ("", "_least", "_most")]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    sizes = ("shard_bytes", "process_bytes")
    writer.writerow(["key", "model", *AXES, *columns, *_SHARES, *sizes, "repeats", "error", "where", "at"])
    for record in records:
        values = ["" if value is None else value for value in record.point.values.values()]
        found = [f"{number:.6g}" for each in _figures(record) for number in (each.value, each.least, each.most)]
        shares = [f"{share:.4f}" for share in split(record).shares] if record.repeats else []
        held = [max(record.shard_bytes), max(record.process_bytes)] if record.repeats else []
        middle = [*found, *shares, *held] or [""] * (len(columns) + len(_SHARES) + len(sizes))
        row = [record.key, record.model, *values, *middle, len(record.repeats), record.error, record.where, record.at]
        writer.writerow(row)
    return out.getvalue()


def _figures(record: Record) -> list[Figure]:
    """Return the figures of a row, none of a point that failed."""
    wanted = (first_s, token_s, answer_s, tokens_per_s)
    return [of_record(record, what) for what in wanted] if record.repeats else []


def markdown(records: Sequence[Record]) -> str:
    """Return the tables: what was measured, speed-ups, and what failed."""
    swept = [name for name in AXES if len({record.point.values[name] for record in records}) > 1] or ["shards"]
    good = [record for record in records if record.repeats]
    head = [*swept, "first token, ms", "per token, ms", "tokens/s", *_SHARES, "MiB per rank"]
    rows = [[*_place(record, swept), *_cells(record)] for record in good]
    parts = [f"# Sweep\n\n{_facts(records, swept)}", _table(head, rows)]
    if gained := speedups(records):
        rows = [
            [*(each.point.words[name] for name in swept), f"{each.speedup:.2f}", f"{each.efficiency:.2f}"]
            for each in gained
        ]
        parts.append(
            "## Speed-up and efficiency beside the fewest shards\n\n" + _table([*swept, "speed-up", "efficiency"], rows)
        )
    if failed := [record for record in records if record.error]:
        rows = [[*_place(record, swept), record.error.replace("|", "\\|")] for record in failed]
        parts.append("## Failed\n\n" + _table([*swept, "error"], rows))
    return "\n\n".join(parts) + "\n"


def _facts(records: Sequence[Record], swept: Sequence[str]) -> str:
    """Return what all points have in common."""
    if not records:
        return "Nothing is measured yet."
    first = records[0]
    fixed = ", ".join(f"{name}={first.point.words[name]}" for name in AXES if name not in swept)
    places = "; ".join(dict.fromkeys(record.where for record in records))
    return (
        f"Model {first.model} ({first.digest[:12]}), {fixed}. Measured on {places}. Figures are medians of the repeats,"
        " with the least and the most; wait is for slower ranks, other is rank 0's work between forward passes."
    )


def _place(record: Record, swept: Sequence[str]) -> list[str]:
    return [record.point.words[name] for name in swept]


def _cells(record: Record) -> list[str]:
    """Return the cells of a point's figures."""
    first, token, _, rate = _figures(record)
    times = [f"{f.value * 1e3:.2f} ({f.least * 1e3:.2f} to {f.most * 1e3:.2f})" for f in (first, token)]
    shares = [f"{100 * share:.0f} %" for share in split(record).shares]
    speed = f"{rate.value:.1f} ({rate.least:.1f} to {rate.most:.1f})"
    return [*times, speed, *shares, f"{max(record.shard_bytes) / _MIB:.1f}"]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [head, ["---"] * len(head), *rows])


def benchstat(records: Sequence[Record]) -> str:
    """Return lines in Go's benchmark format, one for each repeat; ns/op is of a whole answer."""
    lines = [
        "pkg: ollampi/sweep",
        "Unit tokens/s better=higher",
        "Unit ns/first better=lower",
        "Unit ns/token better=lower",
    ]
    for record in records:
        place = "/".join(f"{name}={'null' if value is None else value}" for name, value in record.point.values.items())
        name = f"BenchmarkSweep/model={record.model.replace(' ', '_')}/{place}"
        for repeat in record.repeats:
            times = {"ns/op": answer_s(repeat), "ns/first": first_s(repeat), "ns/token": token_s(repeat)}
            told = " ".join(f"{seconds * 1e9:.0f} {unit}" for unit, seconds in times.items())
            size = f"{max(record.shard_bytes)} B/rank"
            lines.append(f"{name} {len(repeat.first_s)} {told} {tokens_per_s(repeat):.3f} tokens/s {size}")
    return "\n".join(lines) + "\n"
