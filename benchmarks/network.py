"""Measure prompts and answers over hosts with a slow network between them, at every level of compression.

    python benchmarks/network.py [all|bytes|decode] [--hosts 2 4] [--rate-mbit 1000] [--delay-us 60] [--rounds 3]
                                 [--levels 0 1 2 3 4] [--tokens 32] [--settings key=value ...]
                                 [--model FOLDER | --width 2048 --mlp 5632 --layers 8 ...]

all     prompts and answers at all levels, beside the same number of ranks on one host, for 2 and 4 hosts
bytes   what a rank sends and receives for a token of a prompt, for 2, 3 and 4 hosts at levels 0 and 2
decode  answers at all levels with exchange.communication_strategy=auto, which takes codes only where they pay

Hosts are namespaces of this machine (tests/support/netlab.py), with one rank each and one thread for each rank. All
contestants stay loaded, and are stopped but in their turns; a round gives each one turn of each row. Levels are forced
but in `decode`; the algorithms are those that each start chooses. Printed are medians in tokens per second, medians of
the ratios within a round, and bytes read from the interfaces, beside 4 (N-1)/N x d x b x 2L. Needs root.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, fields
from pathlib import Path
from statistics import median

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "tests"))

from contestant import Row  # noqa: E402
from large_model import Size, large_model  # noqa: E402
from network_probe import probe  # noqa: E402
from support.netlab import Lab, lab, missing  # noqa: E402
from support.servers import mpirun  # noqa: E402
from sweep_points import level_settings  # noqa: E402
from worker import Worker  # noqa: E402

from ollampi.kernels.codec import NAMES, num_bytes  # noqa: E402
from ollampi.mpiruntime.model_config import ModelConfig, read_config  # noqa: E402

MARKER = "OLLAMPI_CONTESTANT"
SETTINGS = ["threads=1", "exchange.timeout_s=3600"]
ALONE = "one host"
PROMPT, ANSWER = "prefill of 512", "decode"

Figures = dict[tuple[str, str], list[float]]  # by contestant and row: one figure for each round


class Spread(Worker):
    """A contestant whose ranks are found by a variable of their environment: some are no descendants of mpirun."""

    def __init__(self, name: str, command: list[str], env: dict[str, str]) -> None:
        self._mark = f"{MARKER}={os.getpid()}-{name}".encode()
        super().__init__(name, command, {**env, MARKER: f"{os.getpid()}-{name}"})

    def _signal(self, number: int) -> None:
        """Send a signal to all processes of this contestant."""
        for pid in self._processes():
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def _processes(self) -> Iterator[int]:
        """Yield the processes that have the mark."""
        for entry in Path("/proc").iterdir():
            with suppress(OSError):
                if entry.name.isdigit() and self._mark in (entry / "environ").read_bytes().split(b"\0"):
                    yield int(entry.name)


@dataclass(frozen=True)
class Seen:
    """What a world of so many hosts did: tokens per second, and bytes sent and received per token and rank."""

    hosts: int
    rates: Figures
    moved: Figures


@dataclass(frozen=True)
class Question:
    """What is asked for: rows, whether of ranks on one host too, and what is taken unless the arguments say more."""

    rows: tuple[str, ...]
    alone: bool
    strategy: str
    hosts: list[int]
    levels: list[int]


QUESTIONS = {
    "all": Question((PROMPT, ANSWER), True, "compressed", [2, 4], [0, 1, 2, 3, 4]),
    "bytes": Question((PROMPT,), False, "compressed", [2, 3, 4], [0, 2]),
    "decode": Question((ANSWER,), False, "auto", [2, 4], [0, 1, 2, 3, 4]),
}


def contestants(net: Lab, stack: ExitStack, model: Path, args: argparse.Namespace) -> dict[str, Worker]:
    """Return the started contestants by name: a level each, and the ranks on one host where these are asked for."""
    program = [sys.executable, str(HERE / "peer_ollampi.py"), str(model), *SETTINGS, *args.settings]
    question: Question = QUESTIONS[args.question]
    found: dict[str, Worker] = {}
    for level in args.levels:
        name = NAMES[level]
        line = [*program, *level_settings(str(level), question.strategy)]
        found[name] = Spread(name, *net.mpirun([1] * len(net.pids), line))
        stack.callback(found[name].close)
    if question.alone:
        found[ALONE] = Spread(ALONE, *mpirun(len(net.pids), program))
        stack.callback(found[ALONE].close)
    return found


def take_turns(net: Lab, workers: dict[str, Worker], rows: list[Row], rounds: int) -> Seen:
    """Return what all contestants did in turns; a first round only warms up."""
    seen = Seen(len(net.pids), {}, {})
    for number in range(rounds + 1):
        for row in rows:
            for name, worker in workers.items():
                before = sum(map(sum, net.counted()))
                rate = worker.measure(row, seed=number)
                moved = (sum(map(sum, net.counted())) - before) / seen.hosts / (row.prompt + row.tokens - 1)
                print(f"round {number} of {rounds}, {row.name}, {name}: {rate:.1f} tokens/s", file=sys.stderr)
                if number:
                    seen.rates.setdefault((name, row.name), []).append(rate)
                    seen.moved.setdefault((name, row.name), []).append(moved)
    return seen


def formula(level: int, hosts: int, config: ModelConfig) -> float:
    """Return the bytes that a rank sends and receives for a token by 4 (N-1)/N x d x b x 2L."""
    return 4 * (hosts - 1) / hosts * num_bytes(level, config.width) * 2 * config.num_layers


def ratio(seen: Seen, name: str, other: str, row: str) -> str:
    """Return the median over the rounds of what one contestant did of what another did, the least and the most."""
    both = zip(seen.rates[name, row], seen.rates[other, row], strict=True)
    found = sorted(a / b for a, b in both)
    return f"{median(found):.2f} ({found[0]:.2f} to {found[-1]:.2f})"


def table(seen: Seen, rows: list[Row], levels: list[int], config: ModelConfig) -> str:
    """Return the figures of one world in Markdown, with the bytes of prompts: those of an answer are mostly headers."""
    known: dict[str, int | None] = {NAMES[level]: level for level in levels}
    known |= {name: None for name, _ in seen.rates if name not in known}
    others = [NAMES[levels[0]], *([ALONE] if ALONE in known else [])]
    head = [f"{seen.hosts} hosts"]
    for row in rows:
        head += [f"{row.name}, tokens/s", *(f"of {other}" for other in others)]
    counted = rows[0].name == PROMPT
    lines = [[*head, *(["kB per token and rank", "formula", "measured / formula"] if counted else [])]]
    lines.append(["---"] * len(lines[0]))
    for name, level in known.items():
        cells = [name]
        for row in rows:
            cells.append(f"{median(seen.rates[name, row.name]):.1f}")
            cells += [ratio(seen, name, other, row.name) for other in others]
        if level is not None and counted:
            moved, wanted = median(seen.moved[name, PROMPT]), formula(level, seen.hosts, config)
            cells += [f"{moved / 1000:.2f}", f"{wanted / 1000:.2f}", f"{moved / wanted:.3f}"]
        lines.append(cells + [""] * (len(lines[0]) - len(cells)))
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def compare(hosts: int, model: Path, args: argparse.Namespace) -> None:
    """Print the table of a world of so many hosts."""
    known = {PROMPT: Row(PROMPT, 1, 512, 1), ANSWER: Row(ANSWER, 1, 16, args.tokens)}
    rows = [known[name] for name in QUESTIONS[args.question].rows]
    with ExitStack() as stack:
        net = stack.enter_context(lab(hosts, args.rate_mbit, args.delay_us))
        told = probe(net)
        seen = take_turns(net, contestants(net, stack, model, args), rows, args.rounds)
    print(f"\nRound trip and throughput between two hosts: {told}\n")
    print(table(seen, rows, args.levels, read_config(model)), flush=True)


def main() -> None:
    """Compare what the arguments ask for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("question", nargs="?", choices=QUESTIONS, default="all")
    parser.add_argument("--hosts", type=int, nargs="+", help="by default 2 4, of bytes 2 3 4")
    parser.add_argument("--rate-mbit", type=float, default=1000)
    parser.add_argument(
        "--delay-us", type=float, default=60, help="one way; the machine adds its own to the round trip"
    )
    parser.add_argument("--levels", type=int, nargs="+", choices=range(5), help="by default all, of bytes 0 2")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=32, help="of an answer")
    parser.add_argument("--model", type=Path, help="a folder, in the place of a random model")
    for field, value in zip(fields(Size), (2048, 5632, 8, 32, 8, 4096), strict=True):
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=int, default=value)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "ollampi-network")
    parser.add_argument("--settings", nargs="+", default=[], help="of all contestants, such as quantize=q8")
    args = parser.parse_args()
    args.hosts = args.hosts or QUESTIONS[args.question].hosts
    args.levels = args.levels or QUESTIONS[args.question].levels
    if reason := missing(delay=True):
        sys.exit(reason)
    size = Size(*(getattr(args, field.name) for field in fields(Size)))
    name = "-".join(str(getattr(size, field.name)) for field in fields(Size))
    model = args.model.resolve() if args.model else large_model(args.folder, size, name)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that hosts and ranks go too
    for hosts in args.hosts:
        compare(hosts, model, args)


if __name__ == "__main__":
    main()
