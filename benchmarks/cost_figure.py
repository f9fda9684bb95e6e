"""Draw on paper what clusters of up to 512 nodes would do: docs/cost-model.svg and the table of docs/cost-model.md.

    python benchmarks/cost_figure.py [--svg docs/cost-model.svg]

Nothing is measured: the constants are those that `ollampi plan` assumes on a machine that was not fitted, with the
nodes and links below. It prints the table, and writes the figure.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ollampi.launcher.plan_times import Assumptions, Estimated, Estimator
from ollampi.launcher.plan_words import digits
from ollampi.mpiruntime.cost_model import ASSUMED, Constants
from ollampi.mpiruntime.model_config import parse_config
from ollampi.mpiruntime.plan import Wanted

SVG = Path(__file__).resolve().parent.parent / "docs" / "cost-model.svg"
NODES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
TOLD = (1, 8, 64, 512)
RANKS, CORES, MEMORY, CONTEXT, STREAMS = 8, 64, 512 << 30, 4096, 16  # of a node; answers of a replica
SHAPES = {  # of Llama 3.1: width, MLP, layers, heads
    "8B": (4096, 14336, 32, 32),
    "70B": (8192, 28672, 80, 64),
    "405B": (16384, 53248, 126, 128),
}
NODE = replace(ASSUMED, host_byte_s=1 / 400e9, many_flop_s=1 / 100e9, few_flop_s=1 / 50e9)
LINKS: dict[str, Constants] = {
    "10 Gbit/s, 50 us": replace(NODE, far_trip_s=50e-6, far_byte_s=8e-10),
    "100 Gbit/s, 5 us": replace(NODE, far_trip_s=5e-6, far_byte_s=8e-11, far_message_s=1e-6, far_copy_s=0.0),
}
COLOURS = {"8B": "#1b7837", "70B": "#2166ac", "405B": "#b2182b"}
WIDTH, HEIGHT, LEFT, TOP = 380, 260, 60, 40


@dataclass(frozen=True)
class Best:
    """What so many nodes do at their best: for one answer alone, and for as many answers as they can take."""

    nodes: int
    alone: Estimated
    together: Estimated


def best(shape: str, link: str, nodes: int) -> Best:
    """Return what nodes do with a shape over a link, in the numbers of shards that are best and fit."""
    width, mlp, layers, heads = SHAPES[shape]
    values = {
        "model_type": "llama",
        "hidden_size": width,
        "intermediate_size": mlp,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
        "max_position_embeddings": 131072,
        "dtype": "bfloat16",
    }
    given = Assumptions(LINKS[link], False, RANKS, CORES, 2, STREAMS, 512, CONTEXT // 2)
    wanted = Wanted(1, "bfloat16", "q8", "auto", False)
    estimator = Estimator(parse_config(values, shape), wanted, "all", None, given, nodes * RANKS, MEMORY, CONTEXT)
    rows = [row for row in estimator.rows() if row.fits]
    return Best(
        nodes, min(rows, key=lambda row: row.token_s or 0.0), max(rows, key=lambda row: row.tokens_per_s or 0.0)
    )


def table(shapes: Sequence[str] = tuple(SHAPES)) -> str:
    """Return the table of the document in Markdown, for some shapes."""
    lines = ["| model | link | nodes | shards for one answer | ms per token | shards x replicas for many | tokens/s |"]
    lines.append("|" + " --- |" * 7)
    for shape in shapes:
        for link in LINKS:
            for found in (best(shape, link, nodes) for nodes in TOLD):
                alone, many = found.alone, found.together
                cells = [shape, link, str(found.nodes), str(alone.shards), digits((alone.token_s or 0) * 1e3)]
                cells += [f"{many.shards} x {many.replicas}", digits(many.tokens_per_s or 0)]
                lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def figure() -> str:
    """Return the figure as SVG: both quantities over nodes, on logarithmic scales."""
    found = {(s, k): [best(s, k, nodes) for nodes in NODES] for s in SHAPES for k in LINKS}
    panels: list[tuple[str, Callable[[Best], float]]] = [
        ("ms per token, one answer alone", lambda each: (each.alone.token_s or 0) * 1e3),
        (f"tokens/s, {STREAMS} answers in each replica", lambda each: each.together.tokens_per_s or 0),
    ]
    total = 2 * (WIDTH + LEFT) + 20
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {total} {HEIGHT + TOP + 60}" font-family="sans-serif"'
        ' font-size="11">',
        f'<rect width="{total}" height="{HEIGHT + TOP + 60}" fill="white"/>',
    ]
    for number, (title, of) in enumerate(panels):
        parts += _panel(
            LEFT + number * (WIDTH + LEFT), title, {key: [of(e) for e in row] for key, row in found.items()}
        )
    return "\n".join([*parts, "</svg>", ""])


def _panel(x: int, title: str, curves: dict[tuple[str, str], list[float]]) -> list[str]:
    """Return a panel with its axes and curves."""
    low = math.floor(math.log10(min(map(min, curves.values()))))
    high = math.ceil(math.log10(max(map(max, curves.values()))))

    def across(i: int) -> float:
        return x + WIDTH * i / (len(NODES) - 1)

    def up(value: float) -> float:
        return TOP + HEIGHT * (high - math.log10(value)) / (high - low)

    parts = [f'<text x="{x}" y="{TOP - 15}" font-size="13">{title}</text>']
    for power in range(low, high + 1):
        y = up(10.0**power)
        parts.append(f'<path d="M{x} {y:.1f}H{x + WIDTH}" stroke="#ddd"/>')
        parts.append(f'<text x="{x - 6}" y="{y + 4:.1f}" text-anchor="end">{10.0**power:g}</text>')
    for i, nodes in enumerate(NODES):
        parts.append(f'<text x="{across(i):.1f}" y="{TOP + HEIGHT + 16}" text-anchor="middle">{nodes}</text>')
    parts.append(f'<text x="{x + WIDTH / 2}" y="{TOP + HEIGHT + 34}" text-anchor="middle">nodes</text>')
    for (shape, link), values in curves.items():
        dashed = ' stroke-dasharray="5 4"' if link == next(iter(LINKS)) else ""
        line = " ".join(f"{across(i):.1f},{up(value):.1f}" for i, value in enumerate(values))
        parts.append(f'<polyline points="{line}" fill="none" stroke="{COLOURS[shape]}" stroke-width="2"{dashed}/>')
    return [*parts, *_legend(x)]


def _legend(x: int) -> Sequence[str]:
    """Return what colours and dashes stand for."""
    y = TOP + HEIGHT + 52
    parts = []
    for i, (shape, colour) in enumerate(COLOURS.items()):
        parts.append(f'<text x="{x + 45 * i}" y="{y}" fill="{colour}">{shape}</text>')
    slow, fast = LINKS
    parts.append(f'<text x="{x + 140}" y="{y}">dashed: {slow}; full: {fast}</text>')
    return parts


def main() -> None:
    """Print the table and write the figure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--svg", type=Path, default=SVG)
    args = parser.parse_args()
    print(table())
    args.svg.write_text(figure())


if __name__ == "__main__":
    main()
