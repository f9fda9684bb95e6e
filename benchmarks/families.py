"""Print how far logits are from transformers' for every family and format on 1 to 8 ranks: the table of docs/models.md.

    python benchmarks/families.py [family ...]

Small random models in fp32, ranks as threads. For a format that rounds, transformers computes with the rounded numbers.
A cell is the largest difference of any logit (of an encoder: of any number of an embedding) on any number of ranks; it
says so where greedy text differs, or where a tensor is read by no rank.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

sys.path[:0] = [str(Path(__file__).resolve().parent.parent / "tests")]
from support.checkpoints import (  # noqa: E402
    ENCODERS,
    FAMILIES,
    PROMPT,
    reference_greedy,
    reference_hidden,
    reference_logits,
    write_checkpoint,
)
from support.gguf_files import MODELS, write_gguf  # noqa: E402
from support.packers import CONFIGS, quantised  # noqa: E402
from support.worlds import embed, generate, lead, load_message, logits_in_pieces, run_engine  # noqa: E402

from ollampi.mpiruntime.engine_settings import EngineSettings  # noqa: E402
from ollampi.mpiruntime.load_report import LoadReport  # noqa: E402
from ollampi.mpiruntime.request import Sampling  # noqa: E402
from ollampi.mpiruntime.runner import Runner  # noqa: E402
from ollampi.mpiruntime.thread_world import run_threads  # noqa: E402

SIZES = range(1, 9)
KINDS = ["F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"]
FORMATS = ["fp32", "several files", "fp16", "bf16", "FP8", "AWQ", "GPTQ", *(f"GGUF {kind}" for kind in KINDS)]
PACKED = ("llama3", "mistral", "qwen2", "qwen3", "gemma2")
SETTINGS = EngineSettings(context_length=64, cache_tokens=64, block_size=4, quantize="none", dtype="float32")


def with_numbers(folder: Path, into: Path, held: dict[str, torch.Tensor]) -> Path:
    """Return a folder with the config of another and other numbers."""
    into.mkdir()
    (into / "config.json").write_bytes((folder / "config.json").read_bytes())
    save_file(
        {name: tensor.contiguous() for name, tensor in held.items()}, into / "model.safetensors", {"format": "pt"}
    )
    return into


def rounded(folder: Path, into: Path, dtype: torch.dtype) -> tuple[Path, Path]:
    """Return a checkpoint in another dtype, and the folder that transformers reads."""
    held = {name: tensor.to(dtype) for name, tensor in load_file(folder / "model.safetensors").items()}
    made = with_numbers(folder, into, held)
    return made, made


def wide(row: dict[str, Any]) -> dict[str, Any]:
    """Return what makes the matrices of a model wide enough for blocks of 256."""
    shape: dict[str, Any] = {"hidden_size": 256, "intermediate_size": 512}
    if row.get("model_type") not in ("phi3", "bert"):  # whose heads share the width
        shape["head_dim"] = 32
    if "query_pre_attn_scalar" in row:  # a file says nothing of it: it is the heads'
        shape["query_pre_attn_scalar"] = 32
    if "num_experts" in row:
        shape["moe_intermediate_size"] = 256
    rope = row.get("rope_scaling", {})
    if "short_factor" in rope:
        factors = {name: [1.0 + 0.3 * i for i in range(12)] for name in ("short_factor", "long_factor")}
        shape["rope_scaling"] = {**rope, **factors}
    return shape


def cases(family: str, root: Path) -> Iterator[tuple[str, Path, Path]]:
    """Yield format, the path that is loaded, and the folder that transformers reads."""
    row = {**FAMILIES, **ENCODERS, **MODELS}[family]
    folder = write_checkpoint(root / family, **row)
    into = root / f"{family}-packed"
    into.mkdir()
    yield "fp32", folder, folder
    yield "several files", write_checkpoint(root / f"{family}-s", shards=True, **row), folder
    for name, dtype in (("fp16", torch.float16), ("bf16", torch.bfloat16)):
        yield name, *rounded(folder, root / f"{family}-{name}", dtype)
    for kind in CONFIGS if family in PACKED else ():
        yield kind.upper(), *quantised(folder, into / kind, kind)
    if family not in MODELS:
        return
    folder = write_checkpoint(root / f"{family}-g", **{**MODELS[family], **wide(row)})
    for kind in KINDS:
        path = root / f"{family}-{kind}.gguf"
        held = write_gguf(path, folder, kind)
        if family.startswith("gemma"):  # the file has norms with their offset added
            held = {name: tensor - float(name.endswith("norm.weight")) for name, tensor in held.items()}
        yield f"GGUF {kind}", path, with_numbers(folder, root / f"{family}-{kind}", held)


def measured(path: Path, reference: Path, encoder: bool) -> tuple[float, bool, set[str]]:
    """Return the largest difference on any number of ranks, whether texts were equal, and tensors that nobody read."""
    if encoder:
        wanted = reference_hidden(reference, PROMPT)
        messages = [embed(1, path, [PROMPT], pooling="mean"), embed(2, path, [PROMPT], pooling="first")]
        worst = 0.0
        for size in SIZES:
            recorder = run_threads(size, lambda c: run_engine(c, messages, SETTINGS))[0]
            for number, vector in ((1, wanted.mean(0)), (2, wanted[0])):
                worst = max(worst, float((recorder.embeddings(number)[0] - vector).abs().max()))
        return worst, True, set()
    wanted, text = reference_logits(reference, PROMPT), reference_greedy(reference, PROMPT, 8)
    messages = [generate(1, path, PROMPT, sampling=Sampling(temperature=0.0), max_tokens=8)]
    worst, equal, unread = 0.0, True, set[str]()
    for size in SIZES:

        def work(runner: Runner) -> tuple[list[LoadReport], torch.Tensor]:
            reports = runner.lead_load(load_message(path))
            return reports, logits_in_pieces(runner, PROMPT, [9, 1, 7])

        found: Any = run_threads(size, lambda c, work=work: lead(c, work))[0]
        unread |= set.intersection(*(set(report.unread) for report in found[0]))
        worst = max(worst, float((found[1] - wanted).abs().max()))
        recorder = run_threads(size, lambda c: run_engine(c, messages, SETTINGS))[0]
        equal &= recorder.tokens(1) == text
    return worst, equal, unread


def main() -> None:
    """Print one line for each family."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("families", nargs="*", default=[*FAMILIES, *ENCODERS])
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    print(f"| family | {' | '.join(FORMATS)} |\n|{'---|' * (len(FORMATS) + 1)}", flush=True)
    with tempfile.TemporaryDirectory() as temporary:
        for family in args.families:
            cells = {
                form: _cell(*measured(path, reference, family in ENCODERS))
                for form, path, reference in cases(family, Path(temporary))
            }
            print(f"| {family} | {' | '.join(cells.get(form, '') for form in FORMATS)} |", flush=True)


def _cell(worst: float, equal: bool, unread: set[str]) -> str:
    """Return what a cell of the table says."""
    return f"{worst:.0e}{'' if equal else ', other text'}{f', {len(unread)} unread' if unread else ''}"


if __name__ == "__main__":
    main()
