"""Draw what a sweep measured: speed-up by shards, where the time goes, throughput against latency."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from sweep_figures import at_shards, of_record, speedups, split, token_s, tokens_per_s
from sweep_points import AXES, Point
from sweep_records import NAME, Record

MISSING = "no plots: matplotlib is not installed; pip install 'ollampi[plots]'"
_PARTS = {"compute": "#4477aa", "exchange": "#ee6677", "wait": "#ccbb44", "other": "#bbbbbb"}
_SIZE, _DPI, _MOST_BARS = (8, 5), 120, 40


def has_matplotlib() -> bool:
    """Return whether plots can be drawn."""
    return importlib.util.find_spec("matplotlib") is not None


def draw(records: Sequence[Record], folder: Path) -> list[Path]:
    """Return the paths of the plots that the records are enough for, as PNG in a folder."""
    good = [record for record in records if record.repeats]
    plots: dict[str, Callable[[Sequence[Record], Any], bool]] = {
        "speedup": _speedup,
        "split": _split,
        "throughput": _throughput,
    }
    return [path for name, plot in plots.items() if (path := _drawn(good, folder / f"{NAME}-{name}.png", plot))]


def _drawn(records: Sequence[Record], path: Path, plot: Callable[[Sequence[Record], Any], bool]) -> Path | None:
    """Return the path of a plot, None where there is nothing to show; it needs no screen and leaves no state behind."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    made = Figure(figsize=_SIZE, dpi=_DPI, layout="constrained")
    FigureCanvasAgg(made)
    if not records or not plot(records, made):
        return None
    made.savefig(path)
    return path


def _label(point: Point, all_points: Sequence[Point], without: Sequence[str]) -> str:
    """Return what tells a point from the others, in words."""
    swept = [name for name in AXES if len({other.values[name] for other in all_points}) > 1]
    return " ".join(f"{name}={point.values[name]}" for name in swept if name not in without) or "all"


def _speedup(records: Sequence[Record], made: Any) -> bool:
    """Draw speed-up and efficiency by shards, a line for each combination of the rest."""
    found = speedups(records)
    points = [each.point for each in found]
    left, right = made.subplots(1, 2)
    for rest in dict.fromkeys(at_shards(point, 1) for point in points):
        mine = [each for each in found if at_shards(each.point, 1) == rest]
        counts = [each.point.server.shards for each in mine]
        left.plot(counts, [each.speedup for each in mine], marker="o", label=_label(mine[0].point, points, ["shards"]))
        right.plot(counts, [each.efficiency for each in mine], marker="o")
    counts = sorted({point.server.shards for point in points})
    if found:
        left.plot(counts, [count / found[0].fewest for count in counts], color="#999999", linestyle=":", label="ideal")
        left.legend(fontsize=7)
    for axes, name in ((left, "speed-up"), (right, "efficiency")):
        axes.set(xlabel="shards", ylabel=name, xticks=counts, ylim=(0, None))
    return bool(found)


def _split(records: Sequence[Record], made: Any) -> bool:
    """Draw the parts of the time, a bar for each point."""
    shown = records[:_MOST_BARS]
    points = [record.point for record in shown]
    shares = [split(record).shares for record in shown]
    axes = made.subplots()
    start = [0.0] * len(shown)
    for part, (name, colour) in enumerate(_PARTS.items()):
        widths = [100 * each[part] for each in shares]
        axes.barh(range(len(shown)), widths, left=start, color=colour, label=name)
        start = [a + b for a, b in zip(start, widths, strict=True)]
    axes.set(xlabel="percent of the time", yticks=range(len(shown)), xlim=(0, 100))
    axes.set_yticklabels([_label(point, points, []) for point in points], fontsize=7)
    axes.invert_yaxis()
    axes.legend(fontsize=7, ncols=len(_PARTS), loc="lower center", bbox_to_anchor=(0.5, 1))
    return True


def _throughput(records: Sequence[Record], made: Any) -> bool:
    """Draw tokens per second against the time of a token, a line for each server and its loads."""
    points = [record.point for record in records]
    axes = made.subplots()
    lines: dict[str, list[Record]] = {}
    for record in records:
        lines.setdefault(_label(record.point, points, ["concurrency"]), []).append(record)
    for name, mine in lines.items():
        mine = sorted(mine, key=lambda record: record.point.load.concurrency)
        times = [1e3 * of_record(record, token_s).value for record in mine]
        rates = [of_record(record, tokens_per_s).value for record in mine]
        axes.plot(times, rates, marker="o", label=name)
        for record, x, y in zip(mine, times, rates, strict=True):
            axes.annotate(str(record.point.load.concurrency), (x, y), (4, 4), textcoords="offset points", fontsize=6)
    axes.set(xlabel="time per token, ms", ylabel="tokens/s of all requests", xlim=(0, None), ylim=(0, None))
    axes.set_title("numbers: requests at once", fontsize=8)
    axes.legend(fontsize=7)
    return True
