"""Buffers of a step are kept for the next one, and what a model held goes back to the kernel."""

from __future__ import annotations

import subprocess
import sys

import pytest

COMMON = """
import resource, torch
from ollampi.mpiruntime.heap import give_back, keep_buffers
def faults(): return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def resident(): return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()
"""
KEPT = """
keep_buffers()
def step():
    held = [torch.ones(size << 20, dtype=torch.uint8) for size in (2, 8, 3, 12, 1)]
    del held[::2]
    held.append(torch.ones(16 << 20, dtype=torch.uint8))
for _ in range(3): step()
def ten_steps():
    before = faults()
    for _ in range(10): step()
    return faults() - before
fewest = min(ten_steps() for _ in range(5))  # the kernel may take pages back meanwhile
assert fewest < 1000, fewest  # 26 MiB anew each time would be 67,000
"""
RETURNED = """
keep_buffers()
small = []
weights = []
for _ in range(200):
    weights.append(torch.ones(1 << 20, dtype=torch.uint8))
    small.append(bytearray(100))
before = resident()
del weights
give_back()
assert before - resident() > 190 << 20, (before, resident())
"""


@pytest.mark.parametrize("text", [KEPT, RETURNED])
def test_in_a_process_of_its_own(text: str) -> None:
    done = subprocess.run([sys.executable, "-c", COMMON + text], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
