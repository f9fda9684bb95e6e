"""Write the small layers of a model: its template, system text, options, messages, licenses, and its config."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from ollampi.api.model import Model
from ollampi.api.store.local import LocalStore
from ollampi.api.store.manifest import (
    LICENSE_TYPE,
    MESSAGES_TYPE,
    PARAMS_TYPE,
    SYSTEM_TYPE,
    TEMPLATE_TYPE,
    Layer,
)

MAX_CONFIG_BYTES = 1 << 20


@dataclass(frozen=True)
class Texts:
    """What a new model says besides its weights; what is empty is as in its base."""

    template: str
    system: str
    parameters: dict[str, Any]
    messages: list[dict[str, Any]]
    licenses: list[str]


def with_texts(store: LocalStore, layers: tuple[Layer, ...], texts: Texts) -> tuple[Layer, ...]:
    """Return the layers with those of `texts`, whose blobs are written; licenses and single options are added.

    Raise ApiError where the store cannot be written.
    """
    found = list(layers)
    for media_type, text in ((TEMPLATE_TYPE, texts.template), (SYSTEM_TYPE, texts.system)):
        if text:
            found = [*_without(found, media_type), _put(store, media_type, text)]
    if texts.parameters:
        options = {
            key: value for layer in found if layer.media_type == PARAMS_TYPE for key, value in _json(store, layer)
        }
        text = json.dumps(options | texts.parameters, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        found = [*_without(found, PARAMS_TYPE), _put(store, PARAMS_TYPE, text + "\n")]
    if texts.messages:
        text = json.dumps(texts.messages, separators=(",", ":"), ensure_ascii=False)
        found = [*_without(found, MESSAGES_TYPE), _put(store, MESSAGES_TYPE, text + "\n")]
    for text in texts.licenses:
        layer = _put(store, LICENSE_TYPE, text)
        found += [] if layer in found else [layer]
    return tuple(found)


def config_of(store: LocalStore, model: Model, layers: tuple[Layer, ...], base: Layer | None) -> bytes:
    """Return the config of a model as Ollama writes it; what its base's says besides stays."""
    values = dict(_json(store, base)) if base is not None and base.size <= MAX_CONFIG_BYTES else {}
    values |= {
        "model_format": model.details["format"],
        "model_family": model.details["family"],
        "model_families": model.details["families"],
        "model_type": model.details["parameter_size"],
        "file_type": model.details["quantization_level"],
        "architecture": "amd64",
        "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": [str(layer.digest) for layer in layers]},
    }
    return json.dumps(values, separators=(",", ":"), ensure_ascii=False).encode() + b"\n"


def _json(store: LocalStore, layer: Layer) -> list[tuple[str, Any]]:
    """Return the entries of a JSON object in a blob; none where it holds no object, which reading the model tells."""
    try:
        values = json.loads(store.blobs.path(layer.digest).read_bytes())
    except (OSError, ValueError, RecursionError):
        return []
    return list(values.items()) if isinstance(values, dict) else []


def _put(store: LocalStore, media_type: str, text: str) -> Layer:
    raw = text.encode(errors="replace")  # a half of a surrogate pair, which JSON bodies may have
    return Layer(media_type, store.blobs.put([raw]), len(raw))


def _without(layers: list[Layer], media_type: str) -> list[Layer]:
    return [layer for layer in layers if layer.media_type != media_type]
