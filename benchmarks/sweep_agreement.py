"""Print in how many sweeps the recommendation agrees with what is measured to be best by another sweep of the same.

    python benchmarks/sweep_agreement.py [--folder FOLDER] [--cases 0 1 ...] [--shards 1 2 4] [--starts 2] [--repeats 3]

Ten cases: random models of several shapes, on this machine and over hosts with a network of a rate and a delay between
them (tests/support/netlab.py; these need root). Each case is swept twice, with servers of their own. A recommendation
of the first sweep agrees where the second one measures this number of shards as best, or ties it with the best. The
same line again goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "tests"))

from large_model import Size, large_model  # noqa: E402
from network_probe import probe  # noqa: E402
from support.netlab import lab, missing  # noqa: E402
from sweep_advice import Choice, choices  # noqa: E402
from sweep_records import Record, Records, merged  # noqa: E402
from sweep_start import HOSTS  # noqa: E402

SOME_FAILED = 1  # the status of a sweep of which some points failed


@dataclass(frozen=True)
class Case:
    """A shape, a link (rate in Mbit/s and one-way delay in microseconds, None: one host), and what else is swept."""

    size: Size
    link: tuple[float, float] | None = None
    words: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """Return it in words."""
        shape = f"width {self.size.width}, {self.size.layers} layers"
        link = f"hosts with {self.link[0]:g} Mbit/s and {self.link[1]:g} us" if self.link else "one host"
        return ", ".join([shape, link, *self.words])


_SMALL, _FLAT = Size(256, 768, 8, 4, 2, 4096), Size(1024, 4096, 2, 16, 4, 4096)
_DEEP, _WIDE = Size(512, 1408, 24, 8, 4, 4096), Size(2048, 5632, 6, 32, 8, 4096)
CASES = [
    Case(_SMALL),
    Case(_DEEP),
    Case(_FLAT, words=("quantize=q8",)),
    Case(_WIDE),
    Case(_WIDE, words=("quantize=q4",)),
    Case(_SMALL, (1000, 60)),
    Case(_DEEP, (10000, 20)),
    Case(_FLAT, (1000, 60)),
    Case(_WIDE, (1000, 60), ("level=2",)),
    Case(_WIDE, (100, 200)),
]


def agreement(recommended: Sequence[Record], measured: Sequence[Record]) -> dict[str, tuple[int, int, bool]]:
    """Return by goal what the first records recommend, what is best by the second ones, and whether these agree.

    They do where the recommended number of shards is the best of the second records, or differs from it by less than
    the noise. Both have one quantisation; there is nothing to compare where one of them has no figures.
    """
    found = {}
    for choice_of, second in zip(choices(recommended).values(), choices(measured).values(), strict=False):
        found |= _agreement(choice_of, second)
    return found


def _agreement(first: dict[str, Choice], second: dict[str, Choice]) -> dict[str, tuple[int, int, bool]]:
    found = {}
    for goal, choice in first.items():
        leader = second[goal].leader
        again = [c for c in second[goal].candidates if c.server.shards == choice.shards]
        agrees = bool(again) and again[0].figure.ties(leader.figure)
        found[goal] = choice.shards, leader.server.shards, agrees
    return found


@contextmanager
def hosts(link: tuple[float, float] | None, count: int) -> Iterator[tuple[list[str], dict[str, str]]]:
    """Give what stands before a program and its environment, so that its ranks are spread over hosts with a link."""
    if link is None:
        yield [], dict(os.environ)
        return
    with lab(count, *link) as net:
        print(f"round trip and throughput between two hosts: {probe(net)}", file=sys.stderr, flush=True)
        told = json.dumps({"pids": net.pids, "agent": str(net.agent)})
        yield net.inside(0, []), {**os.environ, HOSTS: told}


def sweep(case: Case, model: Path, folder: Path, args: argparse.Namespace) -> list[Record]:
    """Return the records of one sweep of a case, those of points that failed too."""
    swept = f"shards={','.join(map(str, args.shards))}"
    words = [f"model={model}", f"folder={folder}", swept, "threads=1", "concurrency=1,8", f"repeats={args.repeats}"]
    words += [f"starts={args.starts}"]
    words += [f"prompt={args.prompt}", f"output={args.output}", *case.words]
    with hosts(case.link, max(args.shards)) as (before, env):
        done = subprocess.run([*before, sys.executable, str(HERE / "sweep.py"), *words], env=env, stdout=sys.stderr)
        if done.returncode not in (0, SOME_FAILED):
            sys.exit(f"the sweep of {case.text} ended with status {done.returncode}; its messages are above")
    return merged(Records(folder).read().values())


def compare(number: int, args: argparse.Namespace) -> bool | None:
    """Print how the two sweeps of a case compare; return whether they agree, None where it cannot be swept here."""
    case = CASES[number]
    if case.link and (reason := missing(delay=True)):
        print(f"{number}: {case.text}: left out: {reason}", flush=True)
        return None
    size = case.size
    name = f"{size.width}-{size.mlp}-{size.layers}-{size.heads}-{size.kv_heads}"
    model = large_model(args.folder / "shapes", size, name)
    halves = [sweep(case, model, args.folder / f"case-{number}" / half, args) for half in ("first", "second")]
    found = agreement(*halves)
    parts = [
        f"{goal} {mine} recommended, {best} best: {'agrees' if agrees else 'DIFFERS'}"
        for goal, (mine, best, agrees) in found.items()
    ]
    print(f"{number}: {case.text}: {'; '.join(parts) or 'nothing could be measured'}", flush=True)
    return bool(found) and all(agrees for _, _, agrees in found.values())


def main() -> None:
    """Compare the cases that the arguments ask for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "ollampi-agreement")
    parser.add_argument("--cases", type=int, nargs="+", choices=range(len(CASES)), default=list(range(len(CASES))))
    parser.add_argument("--shards", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--starts", type=int, default=2)
    parser.add_argument("--prompt", type=int, default=64)
    parser.add_argument("--output", type=int, default=32)
    args = parser.parse_args()
    args.folder = args.folder.resolve()
    found = [agrees for number in args.cases if (agrees := compare(number, args)) is not None]
    print(f"the recommendation agrees with the measured best in {sum(found)} of {len(found)} sweeps")


if __name__ == "__main__":
    main()
