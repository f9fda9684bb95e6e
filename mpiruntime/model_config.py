"""Read a model's config.json into the values that the one decoder is built from."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from ollampi.mpiruntime.errors import ModelError

N = TypeVar("N", int, float)

FAMILIES = ("llama",)
ROPE_TYPES = ("default", "linear", "llama3")


@dataclass(frozen=True)
class Rope:
    """Rotary position embedding: base, and how its frequencies are scaled for a longer context.

    `linear` divides all frequencies by factor; `llama3` divides the long waves by factor, keeps the short ones and
    blends in between (Llama 3.1).
    """

    theta: float = 10000.0
    kind: str = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_context: int = 8192


@dataclass(frozen=True)
class ModelConfig:
    """The shape of a decoder; one row of values is one family."""

    model_type: str
    num_layers: int
    width: int
    mlp_width: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    max_context: int
    norm_eps: float
    rope: Rope
    tied_embeddings: bool
    has_head: bool  # else it makes hidden states only
    attention_bias: bool
    mlp_bias: bool
    dtype: str  # of the checkpoint: float32, float16 or bfloat16

    @property
    def num_tables(self) -> int:
        """Return how many tables of [V, D] there are: that of the tokens, and the output head where it is another."""
        return 2 if self.has_head and not self.tied_embeddings else 1

    @property
    def num_parameters(self) -> int:
        """Return the number of weights in the checkpoint, tied ones once."""
        q, kv = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        attention = self.width * (2 * q + 2 * kv) + self.attention_bias * (q + 2 * kv + self.width)
        mlp = 3 * self.width * self.mlp_width + self.mlp_bias * (2 * self.mlp_width + self.width)
        tables = self.vocab_size * self.width * self.num_tables
        return self.num_layers * (attention + mlp + 2 * self.width) + tables + self.width


class _Fields:
    """A config.json whose values are taken with their types checked."""

    def __init__(self, values: dict[str, Any], source: str) -> None:
        self.values = values
        self.source = source

    def number(self, key: str, kind: type[N], default: N | None = None) -> N:
        """Return a positive number; raise ModelError where it is missing, of another type or not positive."""
        value = self.values.get(key)
        if value is None:
            if default is None:
                raise ModelError(f"{self.source}: {key} is missing; it must be a positive {kind.__name__}")
            return default
        allowed = (int, float) if kind is float else (int,)
        if isinstance(value, bool) or not isinstance(value, allowed) or not 0 < value < 2**40:
            raise ModelError(f"{self.source}: {key} is {value!r}; it must be a positive {kind.__name__}")
        return kind(value)

    def flag(self, key: str, default: bool) -> bool:
        """Return a boolean; raise ModelError where it is something else."""
        value = self.values.get(key, default)
        if not isinstance(value, bool):
            raise ModelError(f"{self.source}: {key} is {value!r}; it must be true or false")
        return value

    def text(self, key: str, default: str) -> str:
        """Return a string; raise ModelError where it is something else."""
        value = self.values.get(key)
        if value is None:
            return default
        if not isinstance(value, str):
            raise ModelError(f"{self.source}: {key} is {value!r}; it must be a string")
        return value

    def map(self, key: str) -> _Fields | None:
        """Return a nested map, or None where there is none."""
        value = self.values.get(key)
        if value is not None and not isinstance(value, dict):
            raise ModelError(f"{self.source}: {key} is {value!r}; it must be an object")
        return None if value is None else _Fields(value, f"{self.source}: {key}")


def read_config(folder: Path) -> ModelConfig:
    """Return the config of the model in `folder`; raise ModelError with the file, the key and the value."""
    path = folder / "config.json"
    if not path.is_file():
        raise ModelError(f"{path} is no file; a model is a folder with a Hugging Face config.json")
    try:
        values = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as e:
        raise ModelError(f"{path} cannot be read as JSON ({e}); a model is a folder with a Hugging Face config") from e
    if not isinstance(values, dict):
        raise ModelError(f"{path} holds {type(values).__name__}; it must be an object")
    return parse_config(values, str(path))


def parse_config(values: dict[str, Any], source: str) -> ModelConfig:
    """Return the config in `values`; `source` names it in errors."""
    fields = _Fields(values, source)
    model_type = fields.text("model_type", "")
    if model_type not in FAMILIES:
        raise ModelError(f"{source}: model_type {model_type!r} is not supported; known are: {', '.join(FAMILIES)}")
    if fields.text("hidden_act", "silu") != "silu":
        raise ModelError(f"{source}: hidden_act {values['hidden_act']!r} is not supported; known is: silu")
    width, num_heads = fields.number("hidden_size", int), fields.number("num_attention_heads", int)
    if values.get("head_dim") is None and width % num_heads:
        raise ModelError(
            f"{source}: hidden_size {width} is no multiple of num_attention_heads {num_heads}; give head_dim"
        )
    num_kv_heads = fields.number("num_key_value_heads", int, num_heads)
    if num_heads % num_kv_heads:
        raise ModelError(
            f"{source}: num_attention_heads {num_heads} is no multiple of num_key_value_heads {num_kv_heads}"
        )
    head_dim = fields.number("head_dim", int, max(1, width // num_heads))
    if head_dim % 2:
        raise ModelError(f"{source}: head_dim is {head_dim}; rotary embedding needs an even number")
    max_context = fields.number("max_position_embeddings", int, 2048)
    return ModelConfig(
        model_type=model_type,
        num_layers=fields.number("num_hidden_layers", int),
        width=width,
        mlp_width=fields.number("intermediate_size", int),
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        vocab_size=fields.number("vocab_size", int),
        max_context=max_context,
        norm_eps=fields.number("rms_norm_eps", float, 1e-6),
        rope=_rope(fields, max_context),
        tied_embeddings=fields.flag("tie_word_embeddings", False),
        has_head=not is_headless(values),
        attention_bias=fields.flag("attention_bias", False),
        mlp_bias=fields.flag("mlp_bias", False),
        dtype=fields.text("dtype", fields.text("torch_dtype", "float32")),
    )


def is_headless(values: dict[str, Any]) -> bool:
    """Return whether a config.json says that the checkpoint ends with its hidden states: LlamaModel, for example."""
    names = values.get("architectures")
    last = str(names[-1]) if isinstance(names, list) and names else ""
    return last.endswith("Model") and not last.endswith("LMHeadModel")


def _rope(fields: _Fields, max_context: int) -> Rope:
    """Return the rotary embedding from `rope_parameters` (newer configs) or `rope_theta` and `rope_scaling`."""
    scaling = fields.map("rope_parameters") or fields.map("rope_scaling") or _Fields({}, fields.source)
    kind = scaling.text("rope_type", scaling.text("type", "default"))
    if kind not in ROPE_TYPES:
        raise ModelError(f"{fields.source}: rope type {kind!r} is not supported; known are: {', '.join(ROPE_TYPES)}")
    theta = scaling.number("rope_theta", float, fields.number("rope_theta", float, 10000.0))
    if kind == "default":
        return Rope(theta=theta)
    rope = Rope(theta=theta, kind=kind, factor=scaling.number("factor", float))
    if kind == "linear":
        return rope
    return Rope(
        theta=theta,
        kind=kind,
        factor=rope.factor,
        low_freq_factor=scaling.number("low_freq_factor", float),
        high_freq_factor=scaling.number("high_freq_factor", float),
        original_context=scaling.number("original_max_position_embeddings", int, max_context),
    )
