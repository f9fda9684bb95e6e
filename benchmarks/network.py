"""Measure prompts and answers over hosts with a slow network between them, at every level of compression.

    python benchmarks/network.py [--hosts 2 4] [--rate-mbit 1000] [--delay-us 60] [--levels 0 1 2 3 4] [--rounds 3]
                                 [--tokens 32] [--model FOLDER | --width 2048 --mlp 5632 --layers 8 ...] [key=value ...]

Hosts are namespaces of this machine (tests/support/netlab.py), with one rank each and one thread for each rank; beside
them the same number of ranks runs on one host. All stay loaded, and are stopped but in their turns; a round gives each
one turn of each row. Printed are medians in tokens per second, medians of the ratios within a round, and the bytes that
a rank sends and receives for a token, read from the interfaces, beside 4 (N-1)/N x d x b x 2L. Needs root.
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
from worker import Worker  # noqa: E402

from ollampi.kernels.codec import NAMES, num_bytes  # noqa: E402
from ollampi.mpiruntime.model_config import ModelConfig, read_config  # noqa: E402

MARKER = "OLLAMPI_CONTESTANT"
SETTINGS = ["threads=1", "exchange.timeout_s=3600"]
ALONE = "one host"

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


def exchange(level: int) -> list[str]:
    """Return the settings of a level."""
    strategy = "compressed" if level else "none"
    return [f"exchange.communication_strategy={strategy}", f"exchange.compression_level={level}"]


def contestants(net: Lab, stack: ExitStack, model: Path, args: argparse.Namespace) -> dict[str, Worker]:
    """Return the started contestants by name: a level each, and the ranks on one host."""
    program = [sys.executable, str(HERE / "peer_ollampi.py"), str(model), *SETTINGS, *args.settings]
    found: dict[str, Worker] = {}
    for level in args.levels:
        name = NAMES[level]
        found[name] = Spread(name, *net.mpirun([1] * len(net.pids), [*program, *exchange(level)]))
        stack.callback(found[name].close)
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


def table(seen: Seen, rows: list[Row], levels: list[int], config: ModelConfig) -> str:
    """Return the figures of one world in Markdown."""

    def ratio(name: str, other: str, row: Row) -> str:
        both = zip(seen.rates[name, row.name], seen.rates[other, row.name], strict=True)
        return f"{median(a / b for a, b in both):.2f}"

    first = NAMES[levels[0]]
    head = [f"{seen.hosts} hosts"]
    for row in rows:
        head += [f"{row.name}, tokens/s", f"of {first}", f"of {ALONE}"]
    lines = [[*head, "kB per token and rank", "formula"]]
    lines.append(["---"] * len(lines[0]))
    for name, level in [*((NAMES[level], level) for level in levels), (ALONE, None)]:
        cells = [name]
        for row in rows:
            cells += [f"{median(seen.rates[name, row.name]):.1f}", ratio(name, first, row), ratio(name, ALONE, row)]
        moved = "" if level is None else f"{median(seen.moved[name, rows[0].name]) / 1000:.1f}"
        lines.append([*cells, moved, "" if level is None else f"{formula(level, seen.hosts, config) / 1000:.1f}"])
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def compare(hosts: int, model: Path, args: argparse.Namespace) -> None:
    """Print the table of a world of so many hosts."""
    rows = [Row("prefill of 512", 1, 512, 1), Row("decode", 1, 16, args.tokens)]
    with ExitStack() as stack:
        net = stack.enter_context(lab(hosts, args.rate_mbit, args.delay_us))
        told = probe(net)
        seen = take_turns(net, contestants(net, stack, model, args), rows, args.rounds)
    print(f"\nRound trip and throughput between two hosts: {told}\n")
    print(table(seen, rows, args.levels, read_config(model)), flush=True)


def main() -> None:
    """Compare what the arguments ask for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hosts", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--rate-mbit", type=float, default=1000)
    parser.add_argument(
        "--delay-us", type=float, default=60, help="one way; the machine adds its own to the round trip"
    )
    parser.add_argument("--levels", type=int, nargs="+", choices=range(5), default=list(range(5)))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=32, help="of an answer")
    parser.add_argument("--model", type=Path, help="a folder, in the place of a random model")
    for field, value in zip(fields(Size), (2048, 5632, 8, 32, 8, 4096), strict=True):
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=int, default=value)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "ollampi-network")
    parser.add_argument("settings", nargs="*", help="of all contestants, such as quantize=q8")
    args = parser.parse_args()
    if reason := missing(delay=True):
        sys.exit(reason)
    size = Size(*(getattr(args, field.name) for field in fields(Size)))
    name = "-".join(str(getattr(size, field.name)) for field in fields(Size))
    model = args.model or large_model(args.folder, size, name)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that hosts and ranks go too
    for hosts in args.hosts:
        compare(hosts, model, args)


if __name__ == "__main__":
    main()
