"""Print how fast GGUF files are quantised, how large the error is, and the same of llama.cpp where it is installed.

    python benchmarks/quantising.py [--millions 64] [--threads N]

Rates are those of whole files, in millions of weights a second, and for each second that a core was busy, which other
work on the machine changes less: random bf16 matrices of 4096 columns that lie in memory already. The error is the root
of the mean square, over that of the weights.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from ollampi.kernels.gguf_quants import pack, unpack
from ollampi.mpiruntime.gguf_header import read_gguf
from ollampi.mpiruntime.gguf_quantise import requantise
from ollampi.mpiruntime.gguf_writer import NewTensor, blocks_of, entry, write_gguf

WIDTH = 4096
LEVELS = {"q8_0": 7, "q4_K_S": 14, "q4_K_M": 15}
PARTS = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down", "attn_norm", "ffn_norm")


def write_model(path: Path, millions: int) -> int:
    """Write a Llama of square matrices, as far as quantising looks at it; return the number of its weights."""
    layers = max(1, millions * 10**6 // (7 * WIDTH * WIDTH))
    rng = np.random.default_rng(0)
    pattern = pack("BF16", (rng.standard_normal((WIDTH, WIDTH)) * 0.02).astype(np.float32))
    norm = pack("F32", np.ones((1, WIDTH), np.float32))
    tensors = []
    for name in [f"blk.{i}.{part}" for i in range(layers) for part in PARTS] + ["token_embd", "output_norm"]:
        is_norm = name.endswith("norm")
        kind, shape, held = ("F32", (WIDTH,), norm) if is_norm else ("BF16", (WIDTH, WIDTH), pattern)
        tensors.append(NewTensor(f"{name}.weight", blocks_of(kind), shape, lambda held=held: [held.data]))
    heads = {"attention.head_count": 32, "attention.head_count_kv": 32, "attention.layer_norm_rms_epsilon": 1e-5}
    sizes = {"block_count": layers, "context_length": 64, "embedding_length": WIDTH, "feed_forward_length": WIDTH}
    values: dict[str, Any] = {f"llama.{key}": value for key, value in {**sizes, **heads}.items()}
    values |= {"general.architecture": "llama", "tokenizer.ggml.model": "none", "llama.vocab_size": WIDTH}
    write_gguf(path, {key: entry(key, value) for key, value in values.items()}, tensors)
    return (7 * layers + 1) * WIDTH * WIDTH


def theirs(source: Path, target: Path, level: str, threads: int) -> None:
    """Quantise with llama.cpp."""
    import llama_cpp

    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.nthread = LEVELS[level], threads
    assert llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(params)) == 0


def timed(who: str, source: Path, target: Path, level: str, threads: int) -> tuple[float, float]:
    """Return the seconds that one file takes, and those of all cores; a process of its own writes it twice."""
    command = [sys.executable, __file__, "--run", json.dumps([who, str(source), str(target), level, threads])]
    wall, cores = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-2:]
    return float(wall), float(cores)


def run(who: str, source: Path, target: Path, level: str, threads: int) -> None:
    """Print the seconds that pass the second time, and those that cores are busy."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    for _ in range(2):
        begin, busy = time.perf_counter(), time.process_time()
        if who == "ours":
            requantise(source, target, level, lambda done, total: None)
        else:
            theirs(source, target, level, threads)
        found = time.perf_counter() - begin, time.process_time() - busy
    print(*found)


def error(source: Path, target: Path) -> float:
    """Return the root of the mean square error of the matrices over that of their numbers."""
    import gguf

    plain, summed, squares = read_gguf(source), 0.0, 0.0
    for tensor in gguf.GGUFReader(target).tensors:
        held = plain.tensors[tensor.name]
        if len(held.shape) > 1:
            raw = np.fromfile(held.path, np.uint8, held.size_bytes, offset=held.offset)
            values = unpack(held.blocks.name, raw.reshape(held.shape[0], -1))
            found = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
            summed += float(np.square(found - values).sum(dtype=np.float64))
            squares += float(np.square(values).sum(dtype=np.float64))
    return float(np.sqrt(summed / squares))


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--millions", type=int, default=128)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--run", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        who, source, target, level, threads = json.loads(options.run)
        run(who, Path(source), Path(target), level, threads)
        return
    contestants = ["ours"]
    try:
        import llama_cpp  # noqa: F401

        contestants.append("llama.cpp")
    except ImportError:
        pass
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "m.gguf", Path(folder) / "q.gguf"
        weights = write_model(source, options.millions)
        print(f"{weights / 1e6:.0f} million weights, {options.threads} threads")
        for level in LEVELS:
            for who in contestants:
                wall, cores = (weights / each / 1e6 for each in timed(who, source, target, level, options.threads))
                off = error(source, target)
                print(f"{level:8} {who:10} {wall:7.1f} M weights/s, {cores:6.1f} per core   error {off:.5f}")


if __name__ == "__main__":
    main()
