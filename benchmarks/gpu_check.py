"""Check everything on a machine with a GPU, in under 8 minutes, and write one report.

    python benchmarks/gpu_check.py [--out gpu_check.md]

Prints the report in Markdown and writes it to a file. A part that fails is told in its place, and the others go on.
Where there is no GPU, nothing is run. `--device cpu` walks through all parts on small shapes, to test the script.
"""

from __future__ import annotations

import argparse
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import gpu_parts
import torch
from drawn_model import TINY
from gpu_parts import Bench

from ollampi.mpiruntime.communicator import Single
from ollampi.mpiruntime.devices import CudaGpus, place
from ollampi.mpiruntime.gpu_arithmetic import OnGpu
from ollampi.mpiruntime.placement import Placement, placement
from ollampi.mpiruntime.staged import Staged
from ollampi.mpiruntime.world import survey

NOT_RUN = "not run: no CUDA device"
BUDGET_S = 400.0  # after which no part begins any more
Part = Callable[[Bench], list[str]]
PARTS: list[tuple[str, Part]] = [
    ("Environment", gpu_parts.environment),
    ("Limits of the device", gpu_parts.limits),
    ("Logits of the demo model against the CPU in fp32", gpu_parts.correctness),
    ("Codecs against the reference (aim: 80 % of the bandwidth)", gpu_parts.codec_twins),
    ("Products of few tokens", gpu_parts.products),
    ("8B shape in bf16 (aim: decode at 85 % of the bandwidth)", gpu_parts.speed),
    ("The same by transformers", gpu_parts.peers),
    ("8B shape in 8 bits", partial(gpu_parts.speed, quantize="q8")),
    ("8B shape in 4 bits", partial(gpu_parts.speed, quantize="q4")),
    ("Sampler", gpu_parts.sampler),
    ("Two ranks on one GPU through MPI", gpu_parts.sharing),
]


@dataclass
class Report:
    """The lines of a report, printed as they come; clock: in seconds."""

    print: Callable[[str], None]
    clock: Callable[[], float] = time.monotonic

    def run(self, parts: list[tuple[str, Part]], bench: Bench, budget_s: float) -> str:
        """Return the report of all parts; one that fails, or comes too late, says so."""
        began, lines = self.clock(), ["# GPU check", ""]
        self.print("\n".join(lines))
        for title, part in parts:
            text = self._part(title, part, bench, self.clock() - began < budget_s)
            self.print("\n".join(text))
            lines += text
        last = f"{self.clock() - began:.0f} s in all"
        self.print(last)
        return "\n".join([*lines, last, ""])

    def _part(self, title: str, part: Part, bench: Bench, in_time: bool) -> list[str]:
        """Return the lines of one part."""
        if not in_time:
            return [f"## {title}", "", "not run: the time is up", ""]
        began = self.clock()
        try:
            found = part(bench)
        except Exception:
            found = ["**failed**", "", "```", traceback.format_exc().strip(), "```"]
        gpu_parts.free(bench)
        return [f"## {title}", "", *found, "", f"({self.clock() - began:.1f} s)", ""]


def bench_of(device: str) -> Bench | None:
    """Return what is to be measured on, None where there is no GPU."""
    if device == "cpu":
        place_ = Placement(torch.device("cpu"), "host", OnGpu(None))
        return Bench(place_, TINY, large=1 << 16, side=64, prompt=40, turns=1)
    if not torch.cuda.is_available():
        return None
    comm = Single()
    return Bench(placement(place(comm, survey(comm), "cuda", CudaGpus())[0], records=True))


def run_rank(device: str) -> None:
    """Compute the demo model's logits with all ranks on one device; rank 0 prints how they differ from the CPU's."""
    from ollampi.launcher.assemble import communicator  # the other parts need no MPI
    from ollampi.mpiruntime.mpi import Mpi

    comm = communicator()
    facts = place(comm, survey(comm), device, CudaGpus())
    at = placement(facts[comm.rank], records=False)
    if device == "cpu":
        at = Placement(torch.device("cpu"), "host", OnGpu(None))
    found = gpu_parts.logits_of(Staged(comm), at, "float32")
    if found is not None:
        expected = gpu_parts.logits_of(Single(), None, "float32")
        assert expected is not None
        print(f"- {comm.size} ranks on {facts[0].gpu or facts[0].device}: {gpu_parts.difference(found, expected)}")
    if isinstance(comm, Mpi):
        comm.finish()


def main(arguments: list[str] | None = None) -> None:
    """Write the report."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("gpu_check.md"))
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--rank", action="store_true", help="run as one rank; used by the above")
    args = parser.parse_args(arguments)
    if args.rank:
        run_rank(args.device)
        return
    bench = bench_of(args.device)
    if bench is None:
        print(NOT_RUN)
        args.out.write_text(f"# GPU check\n\n{NOT_RUN}\n")
        return
    args.out.write_text(Report(partial(print, flush=True)).run(PARTS, bench, BUDGET_S))


if __name__ == "__main__":
    main()
