"""Damaged GGUF files are refused or loaded; benchmarks/fuzz_gguf.py tries more of them, and its time."""

from __future__ import annotations

from pathlib import Path

from support.gguf_fuzz import fuzz


def test_damaged_files_are_refused_or_loaded(tmp_path: Path) -> None:
    outcome = fuzz(tmp_path, seed=1, count=2000)
    assert set(outcome.ends) == {"header refused", "config refused", "tensors refused", "loaded"}
    assert outcome.grown_bytes <= 64 << 20
