"""Know the parameters of answers that a Modelfile or a conversation can set, and their types."""

from __future__ import annotations

from collections.abc import Sequence

from ollampi.mpiruntime.errors import ConfigError, quoted

Parameter = int | float | bool | list[str]

_INTS = "num_ctx num_batch num_gpu main_gpu num_thread num_keep seed num_predict top_k repeat_last_n draft_num_predict"
_FLOATS = "top_p min_p typical_p temperature repeat_penalty presence_penalty frequency_penalty"
_KINDS: dict[str, type[int] | type[float]] = dict.fromkeys(_INTS.split(), int) | dict.fromkeys(_FLOATS.split(), float)
_FLAGS = {"use_mmap"}
_WORDS = {"true": True, "false": False}
_GONE = "penalize_newline low_vram f16_kv logits_all vocab_only use_mlock numa mirostat mirostat_tau mirostat_eta tfs_z"
GONE = frozenset(_GONE.split())  # Ollama warns of these and leaves them out, or ignores them


def parse_parameter(name: str, values: Sequence[str]) -> Parameter:
    """Return the value of a parameter in the type that the server expects; raise ConfigError."""
    if name == "stop" and values:
        return list(values)
    if name not in _KINDS and name not in _FLAGS:
        raise ConfigError(
            f"unknown parameter {quoted(name)}: use one of {', '.join(sorted([*_KINDS, *_FLAGS, 'stop']))}"
        )
    try:
        (value,) = values
        return _WORDS[value.lower()] if name in _FLAGS else _KINDS[name](value)
    except (ValueError, KeyError) as error:
        kind = "true or false" if name in _FLAGS else "a whole number" if _KINDS[name] is int else "a number"
        raise ConfigError(f"parameter {name} takes {kind}, not {quoted(' '.join(values))}") from error
