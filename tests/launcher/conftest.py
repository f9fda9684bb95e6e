"""What tests of the commands share."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.fake_api import Become, FakeApi, serving
from support.fake_slurm import FakeSlurm

from ollampi.launcher import slurm_submit, slurm_wait


@pytest.fixture
def api() -> Iterator[FakeApi]:
    with serving(FakeApi()) as server:
        yield server


@pytest.fixture
def become(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    seen: list[Any] = []

    def note(*args: Any) -> None:
        seen.extend(args)
        raise Become

    monkeypatch.setattr(os, "execv", note)
    return seen


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeSlurm]:
    """Return programs of Slurm that are not real, and settings that are not checked by a whole program."""
    fake = FakeSlurm(tmp_path / "slurm")
    monkeypatch.chdir(fake.cwd)
    monkeypatch.setattr(slurm_wait, "_LOOK_S", 0.01)
    monkeypatch.setattr(slurm_wait, "_ASK_S", 0.02)
    monkeypatch.setattr(slurm_submit, "_check_settings", lambda _overrides, _environ: None)  # another program: slow
    for name in [name for name in os.environ if name.startswith(("OLLAMA_", "SBATCH_", "SLURM_"))]:
        monkeypatch.delenv(name)
    yield fake
    assert "very secret" not in json.dumps(fake.words())
