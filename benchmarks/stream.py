"""Print what streaming costs: tokens per second with all layers in memory, and with all of them read in every step.

    python benchmarks/stream.py [--layers 24] [--quantize none] [--folder /fast/disk] [--rounds 3]

A random model of 24 layers of width 2048 (1.2 billion weights, 2.4 GB in bf16), one rank, in FOLDER, the place of the
checkpoint and the file of layers. "disk": the file read from its beginning to its end in runs as a step does, with
nothing else to do. "bound": the smaller one of the disk's rate by the bytes of a step, and of the model in memory. The
variants take turns in every round, which goes to stderr; the best one of each counts. "cached" reads through the cache
of the kernel, which holds all of the file where there is enough memory; all others read past it.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import save_file

from ollampi.kernels import pages
from ollampi.mpiruntime import layer_file, residence
from ollampi.mpiruntime.communicator import Single
from ollampi.mpiruntime.runner import Runner
from ollampi.mpiruntime.step import Chunk, Load, Step, Unload
from ollampi.mpiruntime.world import survey

WIDTH, MLP, VOCAB, HEADS, KV_HEADS = 2048, 5632, 32000, 16, 8
CONTEXT, BLOCK, DECODED, PROMPT = 1024, 16, 12, 512


def write_model(folder: Path, layers: int, alike: bool = False) -> None:
    """Write a random model in bf16, a file for each layer, so that none of it need be held.

    alike: with the same weights in all layers, which are drawn once.
    """
    draw = torch.Generator().manual_seed(0)
    kv_width = WIDTH // HEADS * KV_HEADS
    shapes = {f"self_attn.{name}_proj": (WIDTH, WIDTH) for name in "qo"}
    shapes |= {f"self_attn.{name}_proj": (kv_width, WIDTH) for name in "kv"}
    shapes |= {"mlp.gate_proj": (MLP, WIDTH), "mlp.up_proj": (MLP, WIDTH), "mlp.down_proj": (WIDTH, MLP)}
    ones = torch.ones(WIDTH).bfloat16()
    parts = []
    part: dict[str, torch.Tensor] = {}
    for i in range(layers):
        if not part or not alike:
            part = {f"{name}.weight": (torch.randn(s, generator=draw) * 0.02).bfloat16() for name, s in shapes.items()}
            part |= {f"{kind}_layernorm.weight": ones.clone() for kind in ("input", "post_attention")}
        parts.append({f"model.layers.{i}.{name}": tensor for name, tensor in part.items()})
        save_file(parts[-1], folder / f"{i}.safetensors")
        parts[-1] = dict.fromkeys(parts[-1], ones)
    ends = {name: (torch.randn(VOCAB, WIDTH, generator=draw) * 0.02).bfloat16() for name in ("head", "tokens")}
    last = {"model.embed_tokens.weight": ends["tokens"], "lm_head.weight": ends["head"], "model.norm.weight": ones}
    save_file(last, folder / "ends.safetensors")
    places = {name: f"{i}.safetensors" for i, part in enumerate(parts) for name in part}
    places |= dict.fromkeys(last, "ends.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    sizes = {"hidden_size": WIDTH, "intermediate_size": MLP, "vocab_size": VOCAB, "num_hidden_layers": layers}
    heads = {"num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS}
    (folder / "config.json").write_text(
        json.dumps({"model_type": "llama", "torch_dtype": "bfloat16", **sizes, **heads})
    )


def timed(runner: Runner, lengths: Sequence[int]) -> float:
    """Return the seconds that steps of so many tokens take."""
    blocks, at = list(range(CONTEXT // BLOCK)), 0
    began = time.perf_counter()
    for length in lengths:
        runner.step(Step(0, [Chunk([7] * length, at, blocks[: -(-(at + length) // BLOCK)], 1)]))
        at += length
    return time.perf_counter() - began


def rates(load: Load) -> tuple[float, float, float, int, int]:
    """Return tokens per second of decoding and of a prompt, the part of both that waited, bytes held and of a step."""
    runner = Runner(Single(), survey(Single()))
    (report,) = runner.lead_load(load)
    residence = runner._models[0].decoder.residence
    timed(runner, [1, 1])  # after the first reading, which checks
    before = getattr(residence, "waited_s", 0.0)
    decode, prompt = timed(runner, [1] * DECODED), timed(runner, [PROMPT])
    waited = (getattr(residence, "waited_s", 0.0) - before) / (decode + prompt)
    runner.unload(Unload(0))
    return DECODED / decode, PROMPT / prompt, waited, report.weight_bytes, report.step_bytes


def disk_rate(path: Path, run: int) -> float:
    """Return the bytes per second at which the file of layers is read past the kernel's cache, a run at a time."""
    buffer = pages.aligned(run).numpy().data
    file, size = os.open(path, os.O_RDONLY | os.O_DIRECT), path.stat().st_size
    began = time.perf_counter()
    for at in range(0, size - run, run):
        os.preadv(file, [buffer], at)
    seconds = time.perf_counter() - began
    os.close(file)
    return (size - run) // run * run / seconds


def main() -> None:
    """Print the rate of the disk, and a line for each variant."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--quantize", default="none")
    parser.add_argument("--folder", default=None)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--factors", type=int, nargs="*", default=[0, 1, 2, 4])
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as temporary:
        folder, cache = Path(temporary, "m"), Path(temporary, "c")
        folder.mkdir()
        write_model(folder, args.layers)
        load = Load(0, str(folder), "bfloat16", CONTEXT, CONTEXT // BLOCK, BLOCK, quantize=args.quantize)
        streamed = replace(load, num_streamed=args.layers, shard_cache=str(cache))
        variants = {f"{n} ahead": replace(streamed, prefetch_factor=n) for n in args.factors}
        half = {"half, 2 ahead": replace(streamed, num_streamed=args.layers // 2)}
        found: dict[str, list[tuple[float, float, float, int, int]]] = {}
        disk = []
        for _ in range(args.rounds):
            for name, variant in {"in memory": load, **variants, **half, "2, cached": streamed}.items():
                residence.open_layers = partial(layer_file.open_layers, direct=name != "2, cached")
                found.setdefault(name, []).append(rates(variant))
                print(
                    f"{name}: {found[name][-1][0]:.2f}, {found[name][-1][1]:.1f} tokens/s", file=sys.stderr, flush=True
                )
            (path,) = cache.glob("*-layers-*")
            disk.append(disk_rate(path, path.stat().st_size // args.layers // pages.PAGE * pages.PAGE))
    threads, rate = torch.get_num_threads(), max(disk) / 1e9
    print(f"{args.layers} layers, quantize={args.quantize}, {threads} threads; disk {rate:.2f} GB/s")
    in_memory = max(rate for rate, *_ in found["in memory"])
    for name, rounds in found.items():
        decode, prompt = max(rate for rate, *_ in rounds), max(rate for _, rate, *_ in rounds)
        _, _, waited, held, step = max(rounds)
        bound = min(in_memory, max(disk) / step) if step else in_memory
        print(
            f"{name:>14}: decode {decode:7.2f} tokens/s ({decode / bound:4.0%} of the bound {bound:.2f}),"
            f" prompt {prompt:7.1f} tokens/s, waited {waited:4.0%}, weights {held / 1e9:.2f} GB,"
            f" a step reads {step / 1e9:.2f} GB"
        )


if __name__ == "__main__":
    main()
