"""Load many damaged GGUF files, each of which must be refused with an error of ours or loaded."""

from __future__ import annotations

import math
import random
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ollampi.mpiruntime.errors import CheckpointError, ModelError
from ollampi.mpiruntime.gguf_config import gguf_config
from ollampi.mpiruntime.gguf_header import read_gguf
from ollampi.mpiruntime.gguf_source import gguf_sources
from ollampi.mpiruntime.model_config import parse_config
from ollampi.mpiruntime.source import Read
from support.checkpoints import write_checkpoint
from support.gguf_files import MODELS, write_gguf
from support.gguf_mutations import Parts, mutated, take_apart

_TINY: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "vocab_size": 48}
_TOKENS = {
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.tokens": [f"t{i}" for i in range(48)],
    "tokenizer.ggml.merges": ["t 1", "t 2"],
    "tokenizer.ggml.scores": [float(i) for i in range(48)],
    "tokenizer.ggml.token_type": [1] * 48,
    "tokenizer.ggml.bos_token_id": 1,
    "tokenizer.ggml.add_bos_token": True,
    "tokenizer.chat_template": "{{ messages }}",
}
_GOOD: list[tuple[str, str, dict[str, Any]]] = [  # model, type of its matrices, sizes
    ("llama3", "F32", _TINY),
    ("biases", "Q8_0", _TINY),
    ("llama2", "Q6_K", {**_TINY, "hidden_size": 256, "intermediate_size": 256, "vocab_size": 16}),
    ("qwen3_moe", "Q4_0", _TINY),
    ("gemma3", "BF16", _TINY),
    ("phi4", "Q5_1", {**_TINY, "hidden_size": 64}),
    ("bert", "F16", _TINY),
]


@dataclass
class Outcome:
    """How files ended, by stage; the most processor time that one took; by how much the process has grown."""

    ends: Counter[str] = field(default_factory=Counter)
    slowest_s: float = 0.0
    slowest: int = 0
    grown_bytes: int = 0


def good_files(folder: Path) -> Iterator[Parts]:
    """Yield small files of several families and types."""
    for model, kind, sizes in _GOOD:
        write_gguf(folder / "m.gguf", write_checkpoint(folder / model, **{**MODELS[model], **sizes}), kind, _TOKENS)
        yield take_apart(folder / "m.gguf")


def fuzz(folder: Path, seed: int, count: int) -> Outcome:
    """Load files number 0 to count - 1 of a seed; raise whatever is not an error of ours, with the file kept."""
    outcome, goods, path = Outcome(), list(good_files(folder)), folder / "damaged.gguf"
    for good in goods:  # what is loaded once, modules and tables, is no growth
        path.write_bytes(good.joined())
        assert load(path) == "loaded"
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
    before = _peak_bytes()
    for number in range(count):
        rng = random.Random(f"{seed} {number}")
        path.write_bytes(mutated(rng.choice(goods), rng))
        began = time.process_time()
        try:
            outcome.ends[load(path)] += 1
        except Exception as e:
            raise AssertionError(f"file {number} of seed {seed} is neither refused nor loaded") from e
        took = time.process_time() - began
        if took > outcome.slowest_s:
            outcome.slowest_s, outcome.slowest = took, number
    outcome.grown_bytes = _peak_bytes() - before
    return outcome


def load(path: Path) -> str:
    """Return where a file was refused, or that it was loaded: header, config, all rows of all tensors."""
    end, read = "loaded", _read_from(path.read_bytes())
    try:
        file = read_gguf(path)
        short = read_gguf(path, tokens=False)
    except CheckpointError:
        return "header refused"
    assert short.tensors == file.tensors
    try:
        parse_config(gguf_config(file), str(path))
    except ModelError:
        end = "config refused"
    try:
        for source in gguf_sources(file).values():
            rows = math.prod(source.shape[:-1]) if len(source.shape) > 1 else source.shape[0]
            for first in range(0, rows, 1000):
                source.rows(first, min(first + 1000, rows), read)
    except ModelError:
        return "tensors refused"
    return end


def _read_from(raw: bytes) -> Read:
    """Return what reads bytes of a file that is held whole."""

    def read(path: Path, offset: int, count: int) -> Tensor:
        """Return `count` bytes as uint8."""
        if offset + count > len(raw):
            raise CheckpointError(f"{path} has {len(raw)} bytes, not {offset + count}")
        return torch.frombuffer(bytearray(raw[offset : offset + count]), dtype=torch.uint8)

    return read


def _peak_bytes() -> int:
    """Return the most memory that this process held."""
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in status if line.startswith("VmHWM:")) * 1024
