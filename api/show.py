"""Write what clients see of a model: its entry in lists and the long answer of /api/show."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from ollampi.api.durations import FOREVER_S, local_text
from ollampi.api.model import Model
from ollampi.api.tokenizer_content import tokenizer_content
from ollampi.mpiruntime.request import LoadedModel

MAX_LICENSE_BYTES = 1 << 20
_FILE_TYPES = {"F32": 0, "F16": 1, "BF16": 32}
_INFO_KEYS = {
    "block_count": "num_hidden_layers",
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "rope.freq_base": "rope_theta",
    "rope.dimension_count": "head_dim",
    "vocab_size": "vocab_size",
}


def tags_entry(model: Model) -> dict[str, Any]:
    """Return a model's entry in /api/tags."""
    return {
        "name": model.full_name,
        "model": model.full_name,
        "modified_at": local_text(model.modified_at),
        "size": model.size_bytes,
        "digest": model.digest,
        "details": model.details,
        "capabilities": model.capabilities,
    }


def ps_entry(loaded: LoadedModel, model: Model | None, now: float) -> dict[str, Any]:
    """Return a loaded model's entry in /api/ps; `model` is None where its folder has gone meanwhile.

    A note, which Ollama's answers do not have, is there only where there is something to say.
    """
    expires_at = loaded.expires_at if loaded.expires_at is not None else now + FOREVER_S
    entry = {
        "name": loaded.name,
        "model": loaded.name,
        "size": loaded.size_bytes,
        "digest": model.digest if model else "",
        "details": model.details if model else {},
        "expires_at": local_text(expires_at),
        "size_vram": loaded.gpu_bytes,
        "context_length": loaded.context_length,
    }
    return {**entry, "note": loaded.note} if loaded.note else entry


def show_answer(
    model: Model, system: str, verbose: bool, summary: Callable[[Model], dict[str, Any]] | None = None
) -> dict[str, Any]:
    """Return the answer of /api/show; absent parts are left out. Raise ModelError, OSError.

    summary: returns what `summary_of` does for a model; without it this process reads the whole tokenizer, as it does
    where the answer shall hold it.
    """
    template = shown_template(model)
    system = system or model.system
    short = None if verbose else summary
    tokenizer = tokenizer_content(model.path, model.texts.file) if short is None else short(model)
    parameters = _parameters(model, tokenizer)
    answer = {
        "license": _license(model),
        "modelfile": modelfile(model, template, system, parameters),
        "parameters": parameter_lines(parameters),
        "template": template,
        "system": system,
        "details": model.details,
        "messages": model.messages or None,
        "model_info": _model_info(model, tokenizer, verbose),
        "tensors": [{"name": t.name, "type": t.dtype, "shape": t.shape} for t in model.tensors] if verbose else None,
        "capabilities": model.capabilities,
        "modified_at": local_text(model.modified_at),
    }
    return {key: value for key, value in answer.items() if value not in (None, "")}


def shown_template(model: Model) -> str:
    """Return the model's template, which mentions .Suffix where the model fills in the middle: clients look for that.

    Behind a Jinja template that part is a comment.
    """
    if model.template:
        return model.template
    template, infill = model.texts.chat_template, model.texts.infill
    if infill is None:
        return template or "{{ .Prompt }}"
    if template is None:
        return f"{{{{- if .Suffix }}}}{infill.template}{{{{ else }}}}{{{{ .Prompt }}}}{{{{ end }}}}"
    return f"{template}{{# {{{{- if .Suffix }}}}{infill.template}{{{{ end }}}} #}}"


def _parameters(model: Model, tokenizer: dict[str, Any]) -> list[tuple[str, object]]:
    """Return the options that the model brings, those with several values several times; else the ends of answers."""
    if model.is_stored:
        listed = ((name, value if isinstance(value, list) else [value]) for name, value in model.parameters.items())
        return [(name, each) for name, values in sorted(listed) for each in values]
    return [("stop", text) for text in _stop_texts(model, tokenizer)]


def parameter_lines(parameters: list[tuple[str, object]]) -> str:
    """Return one line per parameter: the name padded to 30 columns, then the value, text in double quotes."""
    return "\n".join(
        f"{name:<30} {_quoted(value) if isinstance(value, str) else _plain(value)}" for name, value in parameters
    )


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'


def _license(model: Model) -> str:
    """Return the licenses that the model was made with, or the text of its folder's file."""
    if model.licenses:
        return "\n".join(model.licenses)
    path = model.path / "LICENSE"
    try:
        if not path.is_file() or path.stat().st_size > MAX_LICENSE_BYTES:
            return ""
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def modelfile(model: Model, template: str, system: str, parameters: list[tuple[str, object]]) -> str:
    """Return the model as a Modelfile; it names the model, and its adapters by number, never a folder."""
    lines = ['# Modelfile generated by "ollama show"', f"FROM {model.full_name}"]
    if model.template or model.texts.chat_template is None:
        lines.append(f"TEMPLATE {_block(template)}")
    else:  # FROM brings it, and a Modelfile's templates are Go's
        lines.append("# The template is in Jinja and comes with the model.")
    lines += [f"SYSTEM {_block(system)}"] if system else []
    lines += [f"PARAMETER {name} {_quoted(v) if isinstance(v, str) else _plain(v)}" for name, v in parameters]
    lines += [f"# ADAPTER {number} of {len(model.adapters)}" for number in range(1, len(model.adapters) + 1)]
    lines += [f"LICENSE {_block(text)}" for text in model.licenses]
    lines += [f"MESSAGE {message['role']} {_block(message['content'])}" for message in model.messages]
    return "\n".join(lines) + "\n"


def _block(text: str) -> str:
    return f'"""{text}"""'


def _plain(value: object) -> str:
    """Return a number or a truth value as Modelfiles have it."""
    return json.dumps(value)


def _stop_texts(model: Model, tokenizer: dict[str, Any]) -> list[str]:
    """Return the texts of the tokens that end an answer."""
    added = _added_tokens(tokenizer)
    texts = [added[number].get("content") for number in model.texts.eos_token_ids if number in added]
    return [text for text in texts if isinstance(text, str) and text]


def _added_tokens(tokenizer: dict[str, Any]) -> dict[int, dict[str, Any]]:
    """Return the added tokens by id; what is none is left out, since nobody has checked the file."""
    tokens = tokenizer.get("added_tokens")
    entries = [t for t in tokens if isinstance(t, dict)] if isinstance(tokens, list) else []
    return {entry["id"]: entry for entry in entries if type(entry.get("id")) is int}


def _model_info(model: Model, tokenizer: dict[str, Any], verbose: bool) -> dict[str, Any]:
    """Return the facts that GGUF files carry, under their GGUF names, in name order."""
    config, family = model.text_config, model.details["family"]
    info: dict[str, Any] = {
        "general.architecture": family,
        "general.file_type": _FILE_TYPES.get(model.details["quantization_level"], 0),
        "general.parameter_count": model.num_parameters,
        "general.quantization_version": 2,
    }
    heads, width = config.get("num_attention_heads"), config.get("hidden_size")
    rope = config.get("rope_parameters")
    defaults = {
        "num_key_value_heads": heads,
        "head_dim": width // heads if type(heads) is int and type(width) is int and heads > 0 else None,
        "rope_theta": rope.get("rope_theta") if isinstance(rope, dict) else None,
        "max_position_embeddings": model.context_length,
    }
    for key, source in _INFO_KEYS.items():
        value = config.get(source)
        value = defaults.get(source) if value is None else value
        if type(value) is float or (type(value) is int and abs(value) < 2**63):
            info[f"{family}.{key}"] = value
    return dict(sorted((info | _tokenizer_info(model, tokenizer, verbose)).items()))


def _tokenizer_info(model: Model, tokenizer: dict[str, Any], verbose: bool) -> dict[str, Any]:
    """Return the tokenizer's part of model_info; the long lists are null unless verbose."""
    model_part = tokenizer.get("model")
    core = model_part if isinstance(model_part, dict) else {}
    vocab = core.get("vocab") if verbose else None
    numbers = {t: i for t, i in vocab.items() if type(i) is int} if isinstance(vocab, dict) else {}
    special = {number for number, token in _added_tokens(tokenizer).items() if token.get("special")}
    texts = sorted(numbers, key=numbers.__getitem__) or None
    info = {
        "tokenizer.ggml.model": "gpt2"
        if core.get("type", "BPE") == "BPE" and not core.get("byte_fallback")
        else "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.bos_token_id": model.texts.bos_token_id,
        "tokenizer.ggml.eos_token_id": model.texts.eos_token_ids[0] if model.texts.eos_token_ids else None,
    }
    info = {key: value for key, value in info.items() if value is not None}
    lists = {
        "tokenizer.ggml.tokens": texts,
        "tokenizer.ggml.token_type": [3 if numbers[t] in special else 1 for t in texts] if texts else None,
        "tokenizer.ggml.merges": _merges(core) if verbose else None,
    }
    return info | lists


def _merges(core: dict[str, Any]) -> list[str]:
    """Return the merges of a BPE, which files write as "left right" or ["left", "right"]."""
    merges = core.get("merges")
    pairs = [[merge] if isinstance(merge, str) else merge for merge in merges] if isinstance(merges, list) else []
    return [" ".join(part for part in pair if isinstance(part, str)) for pair in pairs if isinstance(pair, list)]
