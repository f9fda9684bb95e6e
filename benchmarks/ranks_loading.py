"""Print how fast ranks load a model together, beside `cat` of the same file: 1.04 billion random weights in bf16.

    python benchmarks/ranks_loading.py [--ranks 2] [--threads 1] [--rounds 5] [--folder DIR] [--quantize none]

Each round has one turn of `cat FILE > /dev/null`, of load=slices and of load=scatter, in processes that stay; a rate is
that of the file's bytes over the seconds of the slowest rank. Before each load but the first ones, ranks fill as much
memory as they will need and free it: the host of a virtual machine may have to find memory that was not used for some
seconds, which takes longer than all the rest (free page reporting). At last the file's pages are dropped: what all
ranks together read from the device shows that a file is read once, however it is cut.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import NamedTuple

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
from large_model import large_model

from ollampi.kernels import pages
from ollampi.launcher.assemble import communicator
from ollampi.launcher.mpi import command, detect, environment, link_library
from ollampi.mpiruntime.communicator import Communicator
from ollampi.mpiruntime.heap import keep_buffers
from ollampi.mpiruntime.load_report import LoadReport
from ollampi.mpiruntime.mpi import Mpi
from ollampi.mpiruntime.replies import Reply
from ollampi.mpiruntime.runner import Runner
from ollampi.mpiruntime.step import Load, Unload
from ollampi.mpiruntime.world import survey

DEMO = Path(__file__).resolve().parent.parent / "conf/models/demo"
MIB = 2**20


def status(field: str) -> int:
    """Return a size of this process in bytes, such as VmRSS or VmHWM."""
    return int(Path("/proc/self/status").read_text().split(f"{field}:")[1].split()[0]) * 1024


def device_bytes() -> int:
    """Return what this process has had the kernel read from devices."""
    return int(Path("/proc/self/io").read_text().split("\nread_bytes: ")[1].split()[0])


class Loaded(NamedTuple):
    """What a load took: reports, and by rank the most memory beside the weights while loading and afterwards."""

    reports: list[LoadReport]
    peaks: list[float]
    beside: list[float]

    def __str__(self) -> str:
        read, held = ([getattr(r, name) for r in self.reports] for name in ("read_bytes", "weight_bytes"))
        return (
            f"read {words(read)} MiB, weights {words(held)} MiB, beside them {words(self.peaks)} MiB at most,"
            f" {words(self.beside)} MiB afterwards"
        )


class Rank:
    """One rank: it loads the model again and again, and tells rank 0 what that took."""

    def __init__(self, comm: Communicator, folder: str, quantize: str) -> None:
        self.comm, self.folder, self.quantize = comm, folder, quantize
        self.runner = Runner(comm, survey(comm))
        self.rss_bare = status("VmRSS")

    def told(self, mine: float) -> list[float]:
        """Return a number of each rank; collective."""
        return [float(text) for text in self.comm.collect(str(mine).encode())]

    def small(self) -> None:
        """Load the demo model: libraries, threads and buffers are there then; collective."""
        self.reports(Load(0, str(DEMO), "bfloat16", 64, 4, 16, quantize=self.quantize))

    def reports(self, load: Load) -> list[LoadReport]:
        """Load a model; return what each rank holds. Collective."""
        found = list[Reply]()
        self.runner.begin_load(load, found.append)
        while not found:
            time.sleep(0.001)
            self.runner.background.look()
        if found[0].report is None:
            raise SystemExit(found[0].error)
        own = json.dumps(asdict(found[0].report)).encode()
        return [LoadReport(**json.loads(each)) for each in self.comm.collect(own)]

    def warm(self, size: int) -> None:
        """Have the host of a virtual machine find so much memory."""
        pages.empty((size,), torch.uint8).zero_()

    def load(self, how: str) -> Loaded:
        """Load and unload; collective."""
        Path("/proc/self/clear_refs").write_text("5")
        before = status("VmRSS")
        self.comm.collect(b"ready")
        message = Load(1, self.folder, "bfloat16", 64, 4, 16, name=how, quantize=self.quantize, load=how)
        reports = self.reports(message)
        own = reports[self.comm.rank].weight_bytes
        peaks, beside = self.told(status("VmHWM") - before - own), self.told(status("VmRSS") - before - own)
        self.runner.unload(Unload(1))
        return Loaded(reports, peaks, beside)


def cat(file: Path) -> float:
    """Return the seconds that `cat FILE > /dev/null` takes."""
    began = time.perf_counter()
    with open(os.devnull, "wb") as nowhere:
        subprocess.run(["cat", str(file)], stdout=nowhere, check=True)
    return time.perf_counter() - began


def drop(file: Path) -> None:
    """Have the kernel forget the file's pages."""
    descriptor = os.open(file, os.O_RDONLY)
    os.fsync(descriptor)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)


def measure(rank: Rank, rounds: int, hows: list[str]) -> None:
    """Load in turns and print what rank 0 sees; collective."""
    file, say = Path(rank.folder) / "model.safetensors", print if rank.comm.rank == 0 else lambda line: None
    size, bare = file.stat().st_size, rank.told(rank.rss_bare)
    rank.small()
    say(f"{rank.comm.size} ranks x {torch.get_num_threads()} threads, {size / MIB:.0f} MiB, {rank.quantize}")
    say(f"a rank without weights: {words(bare)} MiB, with the demo model {words(rank.told(status('VmRSS')))} MiB")
    ratios: dict[str, list[float]] = {how: [] for how in hows}
    last: dict[str, Loaded] = {}
    for turn in range(rounds + 1):
        seconds = rank.told(cat(file) if rank.comm.rank == 0 else 0.0)[0]
        line = f"{turn or 'first'}: cat {size / 1e9 / seconds:.2f} GB/s"
        for how in hows:
            if turn:
                rank.warm(last[how].reports[rank.comm.rank].weight_bytes)
            last[how] = rank.load(how)
            took = max(report.seconds for report in last[how].reports)
            line += f"; {how} {size / 1e9 / took:.2f} GB/s ({seconds / took:.2f} of cat)"
            ratios[how] += [seconds / took] if turn else []
        say(line)
    for how, found in last.items():
        say(f"{how}: median {median(ratios[how]):.2f}, best {max(ratios[how]):.2f} of cat; {found}")
    if rank.comm.rank == 0:
        drop(file)
    before = device_bytes()
    rank.load(hows[0])
    read = rank.told(device_bytes() - before)
    say(f"without the file's pages, {hows[0]} read {words(read)} MiB of the device: {sum(read) / size:.2f} of the file")


def words(sizes: Sequence[float]) -> str:
    """Return sizes in MiB."""
    return ", ".join(f"{size / MIB:.0f}" for size in sizes)


def main() -> None:
    """Start the ranks, or be one of them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", default="/tmp/ollampi-peers")
    parser.add_argument("--quantize", default="none")
    parser.add_argument("--load", nargs="+", default=["slices", "scatter"])
    parser.add_argument("--rank", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.rank is None:
        mpi = detect(None)
        link_library(mpi, os.environ)
        line = [sys.executable, __file__, *sys.argv[1:], "--rank", str(large_model(Path(args.folder)))]
        added = environment(mpi, os.geteuid() == 0, os.environ)
        sys.exit(subprocess.run(command(mpi, args.ranks, line), env={**os.environ, **added}).returncode)
    comm = communicator()
    keep_buffers()
    torch.set_num_threads(args.threads)
    measure(Rank(comm, args.rank, args.quantize), args.rounds, args.load)
    if isinstance(comm, Mpi):
        comm.finish()


if __name__ == "__main__":
    main()
