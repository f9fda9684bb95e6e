"""Damaged headers, indexes and adapters are refused or read, and nothing else; benchmarks/ reads more of them."""

from __future__ import annotations

from pathlib import Path

from fuzz_safetensors import cases, checker
from fuzzing import run


def test_damaged_checkpoints_are_refused_or_read(tmp_path: Path) -> None:
    report = run(cases(4000, seed=2), checker(tmp_path), limit_s=60)
    assert not report.failures, report
    assert report.refused > 2000, report
    assert report.loaded > 500, report
    assert report.largest_bytes < 64 << 20, report
