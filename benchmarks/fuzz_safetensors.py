"""Read checkpoints and adapters whose headers, indexes and settings were damaged with an eye to their structure.

    python benchmarks/fuzz_safetensors.py [COUNT] [SEED]

Prints what came of them; every one must be refused with a CheckpointError or read, in less than 1 s and 64 MiB.
"""

from __future__ import annotations

import json
import math
import random
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from fuzzing import run

from ollampi.mpiruntime.checkpoint import Checkpoint, open_checkpoint
from ollampi.mpiruntime.errors import CheckpointError
from ollampi.mpiruntime.safetensors_header import ITEM_BYTES
from ollampi.mpiruntime.source import DTYPES, Rows, Source, StoredPlain

Files = dict[str, bytes]
Pairs = list[tuple[str, Any]]  # an object of JSON in which a key may come twice


class Raw(str):
    """Text that stands in JSON as it is."""


ODD: list[Any] = [
    *map(Raw, ("null", "true", "NaN", "1e999", "-Infinity", "1.5", "-1", "0", "[]", "{}", "5", '"\\ud800"', "1e5", "")),
    *(Raw(text) for text in ("9" * 400, "9" * 5000, "[" * 3000 + "]" * 3000, '{"a":' * 3000 + "1" + "}" * 3000)),
    *(2**31, 2**47, 2**63, 2**64, "F32", "", "x" * 3000, "../x", [1, [2]], [("a", 1)], "gptq", "gptq_v2", 8, 4),
]
NAMES = [
    "", "__metadata__", "x" * 70_000, "\ud800.weight", "a\0b", "ü\u202e\U0001f600.weight", "q.weight", "q.qweight",
    "q.qzeros", "q.scales", "q.g_idx", "q.weight_scale", "q.weight_scale_inv", "q.bias", "q.input_scale", "p.weight",
    "p.weight_packed", "p.weight.absmax", "p_blocks", "base_model.model.p.lora_A.weight", "base_model.model.p.weight",
    "base_model.model.p.lora_embedding_A", "base_model.model.p.base_layer.weight", "lm_head.weight", "../../p",
]  # fmt: skip
Tensor = list[Any]  # name, dtype, shape, bytes

PLAIN: list[Tensor] = [
    ["p.weight", "F32", [6, 4], None],
    ["n.weight", "BF16", [4], None],
    ["h", "F16", [3, 2, 2], None],
]
ADAPTER: list[Tensor] = [
    ["base_model.model.p.lora_A.weight", "F32", [2, 4], None],
    ["base_model.model.p.lora_B.weight", "BF16", [6, 2], None],
    ["base_model.model.n.weight", "F16", [4], None],
]
_IN_ORDER = b"".join((i // 32).to_bytes(4, "little") for i in range(64))
QUANTISED: dict[str, tuple[dict[str, Any], list[Tensor]]] = {
    "awq": (
        {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm", "zero_point": False},
        [["q.qweight", "I32", [64, 2], None], ["q.qzeros", "I32", [2, 2], None], ["q.scales", "F16", [2, 16], None]],
    ),
    "gptq": (
        {"quant_method": "gptq", "bits": 4, "group_size": 32, "checkpoint_format": "gptq", "sym": True},
        [
            *[["q.qweight", "I32", [8, 16], None], ["q.qzeros", "I32", [2, 2], None]],
            *[["q.scales", "F16", [2, 16], None], ["q.g_idx", "I32", [64], _IN_ORDER]],
        ],
    ),
    "fp8": (
        {"quant_method": "fp8", "weight_block_size": [16, 16], "config_groups": {"g": {"weights": {}}}},
        [["q.weight", "F8_E4M3", [40, 24], None], ["q.weight_scale_inv", "F32", [3, 2], None]],
    ),
}
LORA = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "rank_pattern": {}, "alpha_pattern": {"p": 3}, "use_rslora": True}


def text(value: Any) -> str:
    """Return a value as JSON; lists of pairs are objects."""
    if isinstance(value, Raw):
        return str(value)
    if isinstance(value, dict):
        value = list(value.items())
    if isinstance(value, list) and value and isinstance(value[0], tuple):
        return "{" + ",".join(f"{json.dumps(key)}:{text(part)}" for key, part in value) + "}"
    return "[" + ",".join(map(text, value)) + "]" if isinstance(value, list) else json.dumps(value)


def safetensors(header: Pairs, data: bytes, length: int | None = None) -> bytes:
    """Return a file of a header that may lie and the bytes behind it."""
    raw = text(header or Raw("{}")).encode()
    return ((len(raw) if length is None else length) % 2**64).to_bytes(8, "little") + raw + data


def laid_out(rng: random.Random, tensors: list[Tensor]) -> tuple[Pairs, bytes]:
    """Return the header of tensors one behind the other, where dtypes and shapes make sense, and their bytes."""
    header, data = Pairs(), b""
    for name, dtype, shape, own in tensors:
        size = ITEM_BYTES.get(dtype, 1) if isinstance(dtype, str) else 1
        for n in shape if isinstance(shape, list) else []:
            size *= n if type(n) is int and 0 <= n < 4096 else 1
        size = min(size, 1 << 16)
        data += own if own and len(own) == size else rng.randbytes(size)
        fields = [("dtype", dtype), ("shape", shape), ("data_offsets", [len(data) - size, len(data)])]
        header.append((name, fields))
    return header, data


def changed_tensors(rng: random.Random, tensors: list[Tensor]) -> list[Tensor]:
    """Return tensors with other names, dtypes, shapes or numbers; offsets will fit them."""
    tensors = [list(tensor) for tensor in tensors]
    for _ in range(rng.choice((0, 1, 1, 1, 2, 4))):
        tensor = rng.choice(tensors)
        where = rng.randrange(7)
        if where == 0:
            tensor[0] = rng.choice(NAMES)
        elif where == 1:
            tensor[1] = rng.choice([*ITEM_BYTES, *ITEM_BYTES, "F4", rng.choice(ODD)])
        elif where == 2 and isinstance(tensor[2], list) and tensor[2]:
            tensor[2] = list(tensor[2])
            tensor[2][rng.randrange(len(tensor[2]))] = rng.choice([0, 1, 2, 7, 8, 32, 65, rng.choice(ODD)])
        elif where == 3:
            tensor[2] = rng.choice([[], [0], [0, 4], [4, 0], [1] * 9, [2] * 8, [1, 1, 24], rng.choice(ODD)])
        elif where == 4:
            tensors.append([rng.choice(NAMES), rng.choice(["F32", "I32", "F8_E4M3", "F16"]), [2, 4], None])
        elif where == 5 and len(tensors) > 1:
            tensors.remove(tensor)
        else:
            tensor[3] = None  # other bytes
    return tensors


def changed_header(rng: random.Random, header: Pairs) -> Pairs:
    """Return a header that lies about where its tensors are, or says things twice, or not at all."""
    header = [(name, list(fields)) for name, fields in header]
    name, fields = rng.choice(header)
    place = rng.randrange(len(fields))
    match rng.randrange(8):
        case 0:
            fields[place] = (fields[place][0], rng.choice(ODD))
        case 1:
            fields.append((fields[place][0], rng.choice(ODD)))
        case 2:
            del fields[place]
        case 3:
            header.append((name, fields))
        case 4:
            offsets = [n + rng.choice((-1, 0, 1, 4, 2**40)) for n in fields[-1][1]]
            fields[-1] = (fields[-1][0], offsets[:: rng.choice((1, -1))])
        case 5:
            header.append((rng.choice(NAMES), rng.choice(ODD)))
        case 6:
            fields[-1] = (fields[-1][0], rng.choice(header)[1][-1][1])
        case _:
            header.insert(0, ("__metadata__", rng.choice([*ODD, [("format", "pt")]])))
    return header


def changed_bytes(rng: random.Random, data: bytes) -> bytes:
    """Return bytes that were cut, spliced, overwritten or made longer."""
    raw = bytearray(data)
    at, to = sorted((rng.randrange(len(raw) + 1), rng.randrange(len(raw) + 1)))
    match rng.randrange(5):
        case 0:
            del raw[at:]
        case 1:
            raw[at:at] = raw[at:to]
        case 2:
            for _ in range(rng.randint(1, 8)):
                raw[rng.randrange(len(raw))] = rng.choice(b'\0\xff"[]{},:0919eE-+.\\u') if rng.random() < 0.8 else 255
        case 3:
            raw += rng.randbytes(rng.choice((1, 8, 4096)))
        case _:
            del raw[at:to]
    return bytes(raw)


def changed_settings(rng: random.Random, settings: dict[str, Any]) -> Pairs:
    """Return settings of which one may be odd, or there twice."""
    pairs = list(settings.items())
    if rng.random() < 0.5:
        key = rng.choice(pairs)[0]
        pairs = [(k, v) for k, v in pairs if k != key or rng.random() < 0.2] + [(key, rng.choice(ODD))]
    return pairs


def file(rng: random.Random, tensors: list[Tensor]) -> bytes:
    """Return a safetensors file of tensors, damaged on one of several levels or not."""
    header, data = laid_out(rng, changed_tensors(rng, tensors) if rng.random() < 0.6 else tensors)
    if rng.random() < 0.4:
        header = changed_header(rng, header)
    length = rng.choice((0, 1, 7, 2**31, 2**63, 2**64 - 1, 100 << 20, None)) if rng.random() < 0.03 else None
    whole = safetensors(header, data, length)
    return changed_bytes(rng, whole) if rng.random() < 0.15 else whole


def many_tensors(rng: random.Random) -> bytes:
    """Return a file of very many tensors without a byte, or of a very deep or very long header."""
    empty = [("dtype", "F32"), ("shape", [0]), ("data_offsets", [0, 0])]
    match rng.randrange(4):
        case 0:
            return safetensors([(str(i), empty) for i in range(100_001)], b"")
        case 1:
            return safetensors([("a", Raw("[" * 1_000_000))], b"")
        case 2:
            return safetensors([("a" * 5_000_000, empty)], b"")
        case _:
            return safetensors(
                [("a", [("dtype", "F32"), ("shape", [1] * 500_000), ("data_offsets", [0, 4])])], bytes(4)
            )


def case(seed: int) -> Files:
    """Return the files of one damaged folder."""
    rng = random.Random(seed)
    kind = rng.choice(["plain", "plain", "sharded", "adapter", *QUANTISED])
    config: Pairs = []
    if seed % 2000 == 1999:
        return {"config.json": b"{}", "model.safetensors": many_tensors(rng)}
    if kind in QUANTISED:
        settings, tensors = QUANTISED[kind]
        config = [("quantization_config", changed_settings(rng, settings))]
        files = {"model.safetensors": file(rng, [*tensors, *PLAIN])}
    elif kind == "sharded":
        parts = {f"model-{i}-of-2.safetensors": PLAIN[i - 1 :: 2] for i in (1, 2)}
        files = {name: file(rng, part) for name, part in parts.items()}
        names = changed_settings(rng, {tensor[0]: name for name, part in parts.items() for tensor in part})
        index = text([("weight_map", names)]).encode()
        files["model.safetensors.index.json"] = changed_bytes(rng, index) if rng.random() < 0.2 else index
    elif kind == "adapter":
        files = {"model.safetensors": safetensors(*laid_out(rng, PLAIN))}
        files["adapter_model.safetensors"] = file(rng, ADAPTER)
        files["adapter_config.json"] = text(changed_settings(rng, LORA)).encode()
    else:
        files = {"model.safetensors": file(rng, PLAIN)}
    return {"config.json": text(config or Raw("{}")).encode(), **files}


def checker(folder: Path) -> Callable[[Files], bool]:
    """Return what reads all tensors of a case from `folder` and says whether they could be read."""

    def check(files: Files) -> bool:
        for old in folder.iterdir():
            old.unlink()
        for name, data in files.items():
            (folder / name).write_bytes(data)
        try:
            checkpoint = open_checkpoint(folder, [str(folder)] * ("adapter_config.json" in files))
            for source in checkpoint.sources.values():
                if source.shape and (not isinstance(source, StoredPlain) or source.kind in DTYPES):
                    read_whole(checkpoint, source)
        except CheckpointError as e:
            return not str(e)
        return True

    return check


def read_whole(checkpoint: Checkpoint, source: Source) -> None:
    """Read all rows of a tensor; raise AssertionError where they are not of its shape."""
    pieces: list[Rows] = []
    height = math.prod(source.shape[:-1]) if len(source.shape) > 1 else source.shape[0]
    checkpoint.read(source.name, range(height), None, pieces.append)
    assert sum(len(piece.values) for piece in pieces) == height
    for piece in pieces:
        assert piece.scales is None or piece.scales.shape == (len(piece.values), source.shape[-1] // 32)


def cases(count: int, seed: int) -> Iterator[tuple[str, Files]]:
    """Yield damaged folders, each by the seed that makes it."""
    for number in range(seed * 10_000_000, seed * 10_000_000 + count):
        yield f"case({number})", case(number)


if __name__ == "__main__":
    count, seed = (int(text) for text in (*sys.argv[1:], *("50000", "1")[len(sys.argv) - 1 :]))
    with tempfile.TemporaryDirectory() as made:
        report = run(cases(count, seed), checker(Path(made)))
    print(report)
    sys.exit(bool(report.failures or max(report.grown_bytes, report.largest_bytes) >= 64 << 20))
