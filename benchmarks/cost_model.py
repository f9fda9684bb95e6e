"""Fit the cost model to steps of small models, and compare it with steps that the fit has not seen.

    python benchmarks/cost_model.py [--shards 1 2 3 4] [--links shared fast slow] [--levels 0 2] [--quantize none]
                                    [--rounds 3] [--keep] [--out points.json] [--points points.json]

Links: `shared` memory of one host; `fast`: hosts in namespaces without a limit; `slow`: with 1 Gbit/s each way
(tests/support/netlab.py; these need root). One rank on each host, one thread for each rank. All is measured in rounds,
of which medians count. Every third point of a Latin square of three shapes, shards and links is held out: each shape,
number of shards and link is in both parts; so is all of the shape `strange`. A line is printed for each point as it
comes, then predicted / measured of all that were held out, the worst of them, and in how many sweeps over shards the
one that is predicted to be the fastest is so, or within a twentieth of it. --keep puts the constants where starts and
`ollampi plan` find them; --points reads what an earlier run wrote with --out.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, fields, replace
from itertools import groupby
from pathlib import Path
from statistics import median
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "tests"))

from contestant import MARK  # noqa: E402
from large_model import Size, large_model  # noqa: E402
from support.netlab import lab, missing  # noqa: E402
from support.servers import mpirun  # noqa: E402

from ollampi.launcher.home import cache_folder  # noqa: E402
from ollampi.mpiruntime.cores import usable_cores  # noqa: E402
from ollampi.mpiruntime.cost_fit import OF_LINK, Fit, Point, fit, fit_key, write_fit  # noqa: E402
from ollampi.mpiruntime.cost_model import NAMES, Site  # noqa: E402
from ollampi.mpiruntime.model_config import read_config  # noqa: E402
from ollampi.mpiruntime.step_work import ModelWork  # noqa: E402

SHAPES = {
    "deep": Size(512, 2048, 12, 8, 4, 4096),
    "even": Size(1024, 2816, 8, 16, 4, 8192),
    "wide": Size(2048, 5632, 3, 32, 8, 4096),
    "strange": Size(768, 2304, 10, 12, 4, 6144),
}
UNSEEN = "strange"
LINKS = {"shared": None, "fast": 0.0, "slow": 1000.0}  # Mbit/s of each host, 0 for no limit
SETTINGS = [
    "threads=1",
    "exchange.timeout_s=600",
    "exchange.overlap=never",
]
CLOSE = 1.05  # a choice that takes so much of the least time is as good
_LIMIT_S = 240.0  # of one job


@dataclass(frozen=True)
class Seen:
    """A step that was measured; shape: by name; kind: decode or prefill; rows: answers, or the prompt's tokens.

    few: the most tokens that native kernels multiplied.
    """

    shape: str
    shards: int
    link: str
    kind: str
    rows: int
    seconds: float
    cores: int
    few: float
    level: int = 0

    def point(self, works: dict[str, ModelWork]) -> Point:
        """Return it as the cost model sees it."""
        work = replace(works[self.shape], few=self.few)
        made = (
            work.prefill(self.shards, self.rows) if self.kind == "prefill" else work.decode(self.shards, self.rows, 32)
        )
        near = self.shards == 1 or LINKS[self.link] is None
        local, hosts = (self.shards, 1) if near else (1, self.shards)
        return Point(
            made, Site(local, hosts, self.shards, 1, self.cores, self.level), self.seconds, "" if near else self.link
        )

    @property
    def held(self) -> bool:
        """Return whether the fit shall not see it."""
        number = list(SHAPES).index(self.shape) + self.shards + list(LINKS).index(self.link)
        return self.shape == UNSEEN or number % 3 == 0

    @property
    def told(self) -> str:
        """Return which one it is, in words."""
        what = f"prompt of {self.rows}" if self.kind == "prefill" else f"{self.rows} answers"
        level = f", level {self.level}" if self.level else ""
        return f"{self.link}{level}, {self.shards} shard{'s' * (self.shards > 1)}, {self.shape}, {what}"


def measure(args: argparse.Namespace, folders: dict[str, Path]) -> Iterator[Seen]:
    """Yield what all jobs measure."""
    plan = {"folders": list(map(str, folders.values())), "prompt": args.prompt, "streams": 8, "tokens": args.tokens}
    program = [sys.executable, str(HERE / "cost_points.py"), json.dumps(plan), *SETTINGS, f"quantize={args.quantize}"]
    cores = usable_cores(os.environ, len(os.sched_getaffinity(0)))
    for shards in args.shards:
        for link, level in jobs(args, shards):
            codes = [f"exchange.communication_strategy={'auto' if level else 'none'}"]
            codes += [f"exchange.compression_level={level}"]
            with ExitStack() as stack:
                if LINKS[link] is None or shards == 1:
                    line, env = mpirun(shards, [*program, *codes, *(["exchange.link=shared"] if shards > 1 else [])])
                else:
                    net = stack.enter_context(lab(shards, LINKS[link] or 0.0))
                    line, env = net.mpirun([1] * shards, [*program, *codes])
                for found in lines(line, env):
                    shape = list(folders)[found.pop("shape")]
                    yield Seen(shape, shards, link, **found, cores=cores, level=level)


def jobs(args: argparse.Namespace, shards: int) -> Iterator[tuple[str, int]]:
    """Yield the links and levels that so many shards are measured with: one shard with one, a host's memory exactly."""
    for link in args.links if shards > 1 else args.links[:1]:
        yield from ((link, level) for level in (args.levels if shards > 1 and LINKS[link] is not None else [0]))


def lines(line: list[str], env: dict[str, str]) -> Iterator[dict[str, Any]]:
    """Yield what a job prints as JSON; raise RuntimeError where it fails, and end it where it takes too long."""
    with subprocess.Popen(line, env=env, stdout=subprocess.PIPE, text=True) as job:
        assert job.stdout is not None
        late = threading.Timer(_LIMIT_S, job.kill)
        late.start()
        try:
            for text in job.stdout:
                if text.startswith(MARK):
                    yield json.loads(text.removeprefix(MARK))
        except BaseException:
            job.kill()
            raise
        finally:
            late.cancel()
    if job.returncode:
        raise RuntimeError(f"a job ended with status {job.returncode}; its messages are above: {line}")


def table(seen: list[Seen], points: list[Point], found: Fit) -> str:
    """Return the points in Markdown, with what is predicted for them."""
    rows = [
        "| link | shards | shape | step | measured, ms | predicted, ms | predicted / measured |",
        "|" + " --- |" * 7,
    ]
    for each, point in zip(seen, points, strict=True):
        what = f"prompt of {each.rows}" if each.kind == "prefill" else f"decode of {each.rows}"
        took = found.seconds(point)
        cells = [each.link, str(each.shards), each.shape, what, f"{each.seconds * 1e3:.2f}", f"{took * 1e3:.2f}"]
        rows.append("| " + " | ".join([*cells, f"{took / each.seconds:.2f}"]) + " |")
    return "\n".join(rows)


def summary(name: str, seen: list[Seen], points: list[Point], found: Fit) -> str:
    """Return how far off the predictions are, in words."""
    errors = sorted(
        (abs(found.seconds(point) / point.seconds - 1), each.told) for each, point in zip(seen, points, strict=True)
    )
    if not errors:
        return f"{name}: no points"
    within = sum(error <= 0.15 for error, _ in errors)
    return (
        f"{name}: {len(errors)} points, median error {median(error for error, _ in errors):.1%}, {within} within 15 %,"
        f" worst {errors[-1][0]:.1%} ({errors[-1][1]})"
    )


def choices(seen: list[Seen], points: list[Point], found: Fit) -> str:
    """Return in how many sweeps over shards the model names the best number, in words."""
    every = list(zip(seen, points, strict=True))
    links = sorted({(e.link, e.level) for e, _ in every if e.shards > 1})
    both = [(link, e, p) for link in links for e, p in every if e.shards == 1]
    both += [((e.link, e.level), e, p) for e, p in every if e.shards > 1]
    right, total = 0, 0

    def sweep_of(each: tuple[tuple[str, int], Seen, Point]) -> tuple[tuple[str, int], str, str, int]:
        return each[0], each[1].shape, each[1].kind, each[1].rows

    for _, group in groupby(sorted(both, key=sweep_of), key=sweep_of):
        sweep = [(found.seconds(point), point.seconds) for _, _, point in group]
        right += min(sweep)[1] <= CLOSE * min(seconds for _, seconds in sweep)
        total += 1
    return f"best number of shards: as measured, or within {CLOSE - 1:.0%} of it, in {right} of {total} sweeps"


def constants(found: Fit) -> str:
    """Return the constants as a table."""
    rows = [f"{name:14} {getattr(found.constants, name):.3g}" for name in NAMES if name not in OF_LINK]
    rows += [
        f"{name:14} {value:.3g} ({link})" for link, values in found.links.items() for name, value in values.items()
    ]
    return "\n".join(rows)


def read_points(args: argparse.Namespace, folders: dict[str, Path]) -> list[Seen]:
    """Return the points: measured now, with a line for each, or read from a file."""
    if args.points:
        return [Seen(**values) for values in json.loads(args.points.read_text())]
    began, seen = time.monotonic(), list[Seen]()
    for _ in range(args.rounds):
        for each in measure(args, folders):
            seen.append(each)
            at = f"{time.monotonic() - began:4.0f} s, {len(seen)}"
            print(f"{at}: {each.told}: {each.seconds * 1e3:.2f} ms", flush=True)
    seen = middle(seen)
    if args.out:
        args.out.write_text(json.dumps([asdict(each) for each in seen], indent=1))
    return seen


def middle(seen: list[Seen]) -> list[Seen]:
    """Return each step once, with the median of its rounds."""
    rounds: dict[Seen, list[float]] = {}
    for each in seen:
        rounds.setdefault(replace(each, seconds=0.0), []).append(each.seconds)
    return [replace(each, seconds=median(seconds)) for each, seconds in rounds.items()]


def arguments() -> argparse.Namespace:
    """Return what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shards", type=int, nargs="+", default=[1, 2, 3, 4])
    parser.add_argument("--links", nargs="+", choices=LINKS, default=list(LINKS))
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--quantize", choices=["none", "q8", "q4"], default="none")
    parser.add_argument("--levels", type=int, nargs="+", choices=range(5), default=[0], help="of codes between hosts")
    parser.add_argument("--tokens", type=int, default=24, help="of an answer")
    parser.add_argument("--prompt", type=int, default=256, help="tokens of a prompt, at most 512")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--keep", action="store_true", help="keep the fit to all points for this machine")
    parser.add_argument("--out", type=Path, help="write the points")
    parser.add_argument("--points", type=Path, help="read the points")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "ollampi-cost")
    return parser.parse_args()


def main() -> None:
    """Measure, fit, compare."""
    args = arguments()
    if any(LINKS[link] is not None for link in args.links) and not args.points and (reason := missing()):
        sys.exit(f"{reason}; use --links shared")
    folders = {}
    for name in args.shapes:
        sizes = "-".join(str(getattr(SHAPES[name], field.name)) for field in fields(Size))
        folders[name] = large_model(args.folder, SHAPES[name], sizes)
    works = {name: ModelWork(read_config(folder), "bfloat16", args.quantize) for name, folder in folders.items()}
    seen = read_points(args, folders)
    points = [each.point(works) for each in seen]
    both = list(zip(seen, points, strict=True))
    known, known_points = [e for e in seen if not e.held], [p for e, p in both if not e.held]
    held, held_points = [e for e in seen if e.held], [p for e, p in both if e.held]
    found = fit(known_points)
    print("\nHeld out:\n\n" + table(held, held_points, found))
    print("\n" + constants(found) + "\n")
    print(summary("fitted", known, known_points, found))
    print(choices(seen, points, found))
    for kind, called in (("decode", "time per token"), ("prefill", "prompts")):
        some = [(e, p) for e, p in zip(held, held_points, strict=True) if e.kind == kind]
        print(summary(f"held out, {called}", [e for e, _ in some], [p for _, p in some], found))
    if args.keep and (folder := cache_folder(os.environ)) is not None:
        write_fit(folder, fit_key(args.quantize, "auto"), fit(points))
        print(f"kept in {folder}")


if __name__ == "__main__":
    main()
