"""Read the settings of a LoRA adapter in PEFT's format, adapter_config.json."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from ollampi.mpiruntime.errors import CheckpointError
from ollampi.mpiruntime.strict_json import read_object

N = TypeVar("N", int, float)

FILE = "adapter_config.json"
_STARTS = (True, False, None, "gaussian", "eva", "orthogonal", "lora_ga")  # others change the base weights too
_UNREAD = (  # what makes more of an adapter than W + B A
    "use_dora", "use_qalora", "use_bdlora", "lora_bias", "fan_in_fan_out", "layer_replication", "target_parameters",
    "trainable_token_indices", "alora_invocation_tokens", "arrow_config", "kasa_config", "monteclora_config",
)  # fmt: skip


@dataclass(frozen=True)
class AdapterConfig:
    """The settings that the merging depends on; ranks and alphas: those of modules whose names end so.

    base: the model that the adapter was made for, as it says itself.
    """

    path: Path
    base: str
    rank: int
    alpha: float
    by_root: bool
    ranks: dict[str, int]
    alphas: dict[str, float]

    def rank_of(self, module: str) -> int:
        """Return the rank of a module's matrices."""
        return _by_ending(self.ranks, module, self.rank)

    def scale_of(self, module: str) -> float:
        """Return what B A is multiplied by: alpha / r, or alpha / sqrt(r) with use_rslora."""
        alpha, rank = _by_ending(self.alphas, module, self.alpha), self.rank_of(module)
        return alpha / math.sqrt(rank) if self.by_root else alpha / rank


def read_adapter_config(folder: Path) -> AdapterConfig:
    """Return the settings of the adapter in `folder`; raise CheckpointError with the field that cannot be used."""
    path = folder / FILE
    values = read_object(path)
    if values.get("peft_type") != "LORA":
        raise _unusable(path, values, "peft_type", "'LORA'")
    if values.get("bias", "none") != "none":
        raise _unusable(path, values, "bias", "'none'")
    start = values.get("init_lora_weights", True)
    if not isinstance(start, str | bool | None) or start not in _STARTS:
        raise _unusable(
            path, values, "init_lora_weights", "true; save the adapter with path_initial_model_for_weight_conversion"
        )
    for field in _UNREAD:
        if values.get(field):
            raise _unusable(path, values, field, "unset; merge the adapter with PEFT's merge_and_unload")
    by_root = values.get("use_rslora", False)
    if not isinstance(by_root, bool):
        raise _unusable(path, values, "use_rslora", "true or false")
    return AdapterConfig(
        path=path,
        base=str(values.get("base_model_name_or_path"))[:200],
        rank=int(_number(path, values, "r", whole=True)),
        alpha=_number(path, values, "lora_alpha"),
        by_root=by_root,
        ranks={name: int(n) for name, n in _pattern(path, values, "rank_pattern", whole=True).items()},
        alphas=_pattern(path, values, "alpha_pattern"),
    )


def _number(path: Path, values: dict[str, Any], field: str, whole: bool = False) -> float:
    """Return a positive number of the settings."""
    value = values.get(field)
    kinds = int if whole else int | float
    if isinstance(value, bool) or not isinstance(value, kinds) or not 0 < value < 2**31:
        raise _unusable(path, values, field, f"a positive {'whole ' if whole else ''}number")
    return float(value)


def _pattern(path: Path, values: dict[str, Any], field: str, whole: bool = False) -> dict[str, float]:
    """Return the numbers of modules by the ends of their names.

    PEFT takes regular expressions; here they must be plain names, since those of a stranger may run for ever.
    """
    numbers = values.get(field) or {}
    if not isinstance(numbers, dict) or not all(re.fullmatch(r"\^?[\w.-]{1,200}", name) for name in numbers):
        raise _unusable(path, values, field, "an object of plain names of modules")
    return {name: _number(path, numbers, name, whole) for name in numbers}


def _by_ending(numbers: dict[str, N], module: str, default: N) -> N:
    """Return the number of the first name that the module has or ends with; ^ asks for the whole name."""
    for name, number in numbers.items():
        if module == name.removeprefix("^") or module.endswith(f".{name}"):
            return number
    return default


def _unusable(path: Path, values: dict[str, Any], field: str, wanted: str) -> CheckpointError:
    """Return the error for a field of the settings."""
    return CheckpointError(f"{path}: {field} is {str(values.get(field))[:80]!r}; it must be {wanted}")
