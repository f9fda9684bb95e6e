"""A grammar is tried where its cost harms nobody."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src"
# In a process of its own: a check forks, and this one has threads.
SCRIPT = """
import select, sys
sys.path.insert(0, {source!r})
from ollampi.mpiruntime import grammar_check
from ollampi.mpiruntime.errors import RequestError
def refuse(): raise RequestError("for this reason")
def spin():
    while True: pass
def sleep():
    import time; time.sleep(60)
def grow(): return bytearray(1 << 30)
def crash():
    import ctypes; ctypes.string_at(0)
def nothing(): pass
grammar_check.CPU_S, grammar_check.WALL_S = 0.1, {wall_s}
check = grammar_check.Check({work})
select.select([check], [], [], check.left_s)
print(check.end(), check.starved)
"""


def tried(work: str, wall_s: float = 60.0) -> str:
    script = SCRIPT.format(source=str(SOURCE), work=work, wall_s=wall_s)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize(
    ("work", "reason"),
    [
        ("nothing", "False"),
        ("refuse", "for this reason False"),
        ("spin", "the grammar takes more than 1 s to compile; make it smaller False"),
        ("grow", "the grammar cannot be compiled within 256 MB; make it smaller False"),
        ("crash", "the grammar cannot be compiled within 256 MB; make it smaller False"),
    ],
)
def test_a_check_ends_with_a_reason_or_none(work: str, reason: str) -> None:
    assert tried(work) == reason


def test_a_check_that_gets_no_processor_is_given_up() -> None:
    assert (
        tried("sleep", wall_s=0.2)
        == "the grammar could not be compiled within 10 s; try again, or make it smaller True"
    )
