"""benchmarks/gpu_check.py says so where there is no GPU; its parts run on small shapes on the CPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import gpu_parts
import pytest
import torch
from drawn_model import TINY
from gpu_check import NOT_RUN, PARTS, Report, bench_of
from gpu_parts import Bench

from ollampi.mpiruntime.gpu_arithmetic import OnGpu
from ollampi.mpiruntime.placement import Placement

SCRIPT = Path(gpu_parts.__file__).with_name("gpu_check.py")


def small() -> Bench:
    """Return what is measured on the CPU."""
    bench = bench_of("cpu")
    assert bench is not None
    return bench


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, which the script would use for minutes")
def test_without_a_gpu_nothing_runs(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), "--out", str(tmp_path / "report.md")]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    assert (done.returncode, done.stdout) == (0, f"{NOT_RUN}\n"), done.stderr
    assert NOT_RUN in (tmp_path / "report.md").read_text()


@pytest.mark.parametrize("title", [title for title, part in PARTS if part is not gpu_parts.sharing])
def test_every_part_runs_on_small_shapes(title: str) -> None:
    bench = small()
    bench.bandwidth, bench.operations = 1e9, 1e9
    lines = dict(PARTS)[title](bench)
    assert lines
    assert all(line.startswith("- ") for line in lines)
    assert "OTHER BITS" not in "".join(lines)


def test_a_part_that_fails_or_is_late_harms_no_other() -> None:
    ticks = iter(range(100))
    printed: list[str] = []

    def broken(bench: Bench) -> list[str]:
        raise RuntimeError("a kernel that cannot be compiled")

    def fine(bench: Bench) -> list[str]:
        return ["- fine"]

    parts = [("First", broken), ("Second", fine), ("Third", fine)]
    report = Report(printed.append, lambda: float(next(ticks))).run(parts, small(), budget_s=6.0)
    assert "RuntimeError: a kernel that cannot be compiled" in report
    assert report.count("- fine") == 1
    assert "## Third\n\nnot run: the time is up" in report
    assert report.strip() == "\n".join(printed).strip()


def test_the_parts_compare_with_the_right_thing() -> None:
    class Wrong(OnGpu):
        def rms_norm(self, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
            return 1.5 * super().rms_norm(x, weight, eps)

    bench = Bench(Placement(torch.device("cpu"), "host", Wrong(None)), TINY, turns=1)
    assert all("worst error 0" not in line and "e-05" not in line for line in gpu_parts.correctness(bench))
