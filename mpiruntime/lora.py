"""Merge LoRA adapters in PEFT's format into the tensors of a model while these are read: W + scale * B A.

The format: https://huggingface.co/docs/peft/developer_guides/checkpoint
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from ollampi.mpiruntime.adapter_config import FILE, AdapterConfig, read_adapter_config
from ollampi.mpiruntime.errors import CheckpointError
from ollampi.mpiruntime.safetensors_header import TensorEntry, read_header
from ollampi.mpiruntime.source import DTYPES, Read, Rows, Source, StoredPlain
from ollampi.mpiruntime.stored import Held, whole

_NAME = re.compile(
    r"base_model\.model\.(?P<module>[^\0]+?)\."
    r"(?:(?P<part>lora_A|lora_B)(?:\.default)?\.weight|(?P<table>lora_embedding_[AB])(?:\.default)?"
    r"|(?:base_layer\.|modules_to_save\.(?:default\.)?)?(?P<own>weight|bias))"
)
_FLOATS = {"F32", "F16", "BF16"}
_ROWS = 32
_TIED = re.compile(r"(.*\.)?(embed_tokens|lm_head)\.weight")


@dataclass
class Merged:
    """A matrix W [out, in] with scale * B A added, B [out, r] and A [r, in].

    Of a token table [V, D] PEFT keeps A as [r, V] and B as [D, r] and adds their product transposed (`turned`).
    """

    base: Source
    a: TensorEntry
    b: TensorEntry
    scale: float
    held: Held
    turned: bool = False
    bits: int | None = None
    name: str = field(init=False)
    path: Path = field(init=False)
    kind: str = field(init=False)
    shape: tuple[int, ...] = field(init=False)
    size_bytes: int = field(init=False)

    def __post_init__(self) -> None:
        self.name, self.path, self.shape = self.base.name, self.base.path, self.base.shape
        self.kind = self.base.kind if self.base.kind in DTYPES else f"{self.base.kind}+LoRA"
        self.size_bytes = self.base.size_bytes + self.a.size_bytes + self.b.size_bytes

    def rows(self, first: int, last: int, read: Read) -> Rows:
        """Return rows [first, last) in fp32.

        The sum is made in fp64, so that it does not depend on how many rows are asked for at a time; a few rows of it
        fit a core's cache.
        """
        values = self.base.rows(first, last, read).values
        left, right = self.held.tensors(self.name, lambda: self._factors(read))
        left, out = left[first:last].double() * self.scale, torch.empty(values.shape)
        for i in range(0, len(out), _ROWS):
            out[i : i + _ROWS] = torch.addmm(values[i : i + _ROWS].double(), left[i : i + _ROWS], right)
        return Rows(out)

    def _factors(self, read: Read) -> tuple[Tensor, Tensor]:
        """Return the factors [out, r] and, in fp64, [r, in]."""
        a, b = whole(self.a, read), whole(self.b, read)
        return (a.T, b.T.double()) if self.turned else (b, a.double())


def adapter_files(folder: Path) -> list[Path]:
    """Return the files of an adapter: its settings and its tensors; raise CheckpointError where one is missing."""
    tensors = folder / "adapter_model.safetensors"
    if not (folder / FILE).is_file():
        raise CheckpointError(f"no {FILE} in {folder}; an adapter is a folder as PEFT's save_pretrained writes it")
    if not tensors.is_file():
        pickle = folder / "adapter_model.bin"
        hint = f"; {pickle.name} may run code and is not read, save it with PEFT as safetensors"
        raise CheckpointError(f"no {tensors.name} in {folder}{hint if pickle.exists() else ''}")
    return [folder / FILE, tensors]


def merged(sources: dict[str, Source], adapter: Path) -> dict[str, Source]:
    """Return the sources with those of `adapter`'s layers merged; raise CheckpointError where it does not fit them."""
    _, tensors = adapter_files(adapter)
    config = read_adapter_config(adapter)
    factors: dict[str, dict[str, TensorEntry]] = {}
    result, held = dict(sources), Held()
    for entry in read_header(tensors).values():
        found = _NAME.fullmatch(entry.name)
        if found is None or entry.dtype not in _FLOATS:
            raise CheckpointError(
                f"{entry.path}: tensor {entry.name!r} of dtype {entry.dtype} is none of a LoRA adapter in F32, F16 or"
                " BF16; merge the adapter with PEFT's merge_and_unload"
            )
        target = _target(sources, config, entry, f"{found['module']}.{found['own'] or 'weight'}")
        if found["own"]:
            result[target] = _replaced(sources[target], entry, config)
        else:
            factors.setdefault(found["module"], {})[found["part"] or found["table"]] = entry
    for module, parts in factors.items():
        a = next(iter(parts.values()))
        target = _target(sources, config, a, f"{module}.weight")
        result[target] = _merged(result[target], module, parts, config, held)
    return result


def _target(sources: dict[str, Source], config: AdapterConfig, entry: TensorEntry, name: str) -> str:
    """Return the name of the model's tensor that one of the adapter is for; raise CheckpointError where it has none.

    Models that make embeddings only are often kept without the `model.` before their names.
    """
    for known in (name, f"model.{name}", name.removeprefix("model.")):
        if known in sources:
            if _TIED.fullmatch(known) and "lm_head.weight" not in sources:
                raise CheckpointError(
                    f"{entry.path}: tensor {entry.name!r} changes a token table that is the output head as well; merge"
                    " the adapter with PEFT's merge_and_unload"
                )
            return known
    raise CheckpointError(
        f"{entry.path}: tensor {entry.name!r} is for {name!r}, which the model does not have; the adapter was made for"
        f" {config.base!r}, use it with that model"
    )


def _replaced(source: Source, entry: TensorEntry, config: AdapterConfig) -> StoredPlain:
    """Return the whole tensor of an adapter under the name of the model's."""
    if entry.shape != source.shape:
        raise _unfit(source, entry, config, source.shape)
    return StoredPlain(replace(entry, name=source.name))


def _merged(source: Source, module: str, parts: dict[str, TensorEntry], config: AdapterConfig, held: Held) -> Merged:
    """Return a matrix with the adapter's product added."""
    turned = "lora_embedding_A" in parts or "lora_embedding_B" in parts
    wanted = {"lora_embedding_A", "lora_embedding_B"} if turned else {"lora_A", "lora_B"}
    some = next(iter(parts.values()))
    if parts.keys() != wanted:
        raise CheckpointError(
            f"{some.path}: {module!r} has {', '.join(sorted(parts))}, wanted are {' and '.join(sorted(wanted))}"
        )
    if len(source.shape) != 2:
        raise _unfit(source, some, config, source.shape)
    a, b = (parts[name] for name in sorted(wanted))
    (out, width), rank = source.shape, config.rank_of(module)
    left, right = (width, out) if turned else (out, width)
    for entry, shape in ((a, (rank, right)), (b, (left, rank))):
        if entry.shape != shape:
            raise _unfit(source, entry, config, shape)
    return Merged(source, a, b, config.scale_of(module), held, turned)


def _unfit(source: Source, entry: TensorEntry, config: AdapterConfig, wanted: tuple[int, ...]) -> CheckpointError:
    """Return the error for a tensor of the wrong shape."""
    return CheckpointError(
        f"{entry.path}: tensor {entry.name!r} has shape {list(entry.shape)}, wanted is {list(wanted)} for"
        f" {source.name!r} of shape {list(source.shape)}; the adapter was made for {config.base!r}, use it with that"
        " model"
    )
