"""Load a model with its layers in memory or streamed, and compute a prompt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ollampi.mpiruntime.load_report import LoadReport
from ollampi.mpiruntime.model_config import read_config
from ollampi.mpiruntime.runner import Runner
from ollampi.mpiruntime.step import Unload
from ollampi.mpiruntime.thread_world import run_threads
from support.checkpoints import PROMPT, write_checkpoint
from support.worlds import lead, load_message, logits_in_pieces

PIECES = [9, 5, 1, 1, 1]


def five_layers(folder: Path) -> Path:
    """Write a model of five layers with biases; return its folder."""
    return write_checkpoint(folder, num_hidden_layers=5, head_dim=32, attention_bias=True)


def start(folder: Path, size: int, cache: Path | None = None, **fields: Any) -> tuple[Any, list[LoadReport], list[str]]:
    """Return the logits of a prompt, what the ranks hold, and what was announced; streamed with a cache."""
    if cache is not None:
        fields = {"num_streamed": read_config(folder).num_layers, "shard_cache": str(cache), **fields}
    load, said = load_message(folder, **fields), list[str]()

    def work(runner: Runner) -> tuple[torch.Tensor, list[LoadReport]]:
        runner.announce = said.append
        reports = runner.lead_load(load)
        try:
            return logits_in_pieces(runner, PROMPT, PIECES), reports
        finally:
            runner.lead(Unload(0))

    found = run_threads(size, lambda c: lead(c, work))[0]
    assert found is not None
    return *found, said
