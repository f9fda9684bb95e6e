"""Read and write the manifest of a model: which blobs it consists of, as Ollama's registry and store have it.

The format is Docker's image manifest, version 2, schema 2 (https://distribution.github.io/distribution/spec/manifest-v2-2/)
with Ollama's media types, and a `name` in layers that are files of a folder.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from ollampi.api.errors import ApiError
from ollampi.api.store.digest import Digest, digest_of, parse_digest
from ollampi.mpiruntime.errors import ModelError

MANIFEST_TYPE = "application/vnd.docker.distribution.manifest.v2+json"
OCI_MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
CONFIG_TYPE = "application/vnd.docker.container.image.v1+json"
_OLLAMA = "application/vnd.ollama.image."
MODEL_TYPE = _OLLAMA + "model"
ADAPTER_TYPE = _OLLAMA + "adapter"
PROJECTOR_TYPE = _OLLAMA + "projector"
TEMPLATE_TYPE = _OLLAMA + "template"
SYSTEM_TYPE = _OLLAMA + "system"
PARAMS_TYPE = _OLLAMA + "params"
MESSAGES_TYPE = _OLLAMA + "messages"
LICENSE_TYPE = _OLLAMA + "license"
TENSOR_TYPE = _OLLAMA + "tensor"  # a safetensors file of a folder
JSON_TYPE = _OLLAMA + "json"  # any other file of a folder

MAX_MANIFEST_BYTES = 4 << 20
MAX_LAYERS = 8192
MAX_NAME_CHARS = 512
MAX_SIZE_BYTES = 1 << 50


@dataclass(frozen=True)
class Layer:
    """One blob of a model; `name` is its path in a model folder, "" for a blob that is no file of a folder.

    origin: the model that it was taken from, as Ollama notes it.
    """

    media_type: str
    digest: Digest
    size: int
    name: str = ""
    origin: str = ""


@dataclass(frozen=True)
class Manifest:
    """The blobs of a model; `source` holds the bytes that it was read from, whose digest names the model."""

    config: Layer
    layers: tuple[Layer, ...]
    source: bytes = field(default=b"", compare=False, repr=False)

    @classmethod
    def parse(cls, data: bytes) -> Manifest:
        """Return the manifest that the bytes hold; raise ModelError with the field that cannot be used."""
        if len(data) > MAX_MANIFEST_BYTES:
            raise ModelError(
                f"the manifest has {len(data)} bytes, more than {MAX_MANIFEST_BYTES}; pull the model again"
            )
        try:
            values = json.loads(data, object_pairs_hook=_unique)
        except (ValueError, RecursionError) as e:
            raise ModelError("the manifest is not valid JSON; pull the model again") from e
        if not isinstance(values, dict) or values.get("schemaVersion") != 2:
            raise _wrong("schemaVersion", "2")
        if values.get("mediaType") not in (MANIFEST_TYPE, OCI_MANIFEST_TYPE):
            raise _wrong("mediaType", MANIFEST_TYPE)
        listed = values.get("layers")
        if not isinstance(listed, list) or not 0 < len(listed) <= MAX_LAYERS:
            raise _wrong("layers", f"a list of 1 to {MAX_LAYERS} layers")
        config = _layer("config", values.get("config"))
        layers = tuple(_layer(f"layers[{place}]", each) for place, each in enumerate(listed))
        _check_agreement((config, *layers))
        return cls(config, layers, data)

    def encode(self) -> bytes:
        """Return the manifest as it was read, or else as Ollama writes one."""
        if self.source:
            return self.source
        values = {
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "config": _written(self.config),
            "layers": [_written(layer) for layer in self.layers],
        }
        return json.dumps(values, separators=(",", ":"), ensure_ascii=False).encode() + b"\n"

    @property
    def digest(self) -> Digest:
        """Return the digest of the manifest's bytes, by which Ollama names a model."""
        return digest_of(hashlib.sha256(self.encode()))

    @property
    def blobs(self) -> dict[Digest, int]:
        """Return the size of every blob that the manifest names."""
        return {layer.digest: layer.size for layer in (self.config, *self.layers)}

    def of_type(self, media_type: str) -> Iterator[Layer]:
        """Return the layers of a media type, in order; they may have parameters behind a ";"."""
        return (layer for layer in self.layers if layer.media_type.partition(";")[0].strip() == media_type)


def _layer(field_name: str, values: object) -> Layer:
    """Return one layer; raise ModelError with the field."""
    if not isinstance(values, dict):
        raise _wrong(field_name, "an object")
    media_type, digest, size, name = (values.get(key) for key in ("mediaType", "digest", "size", "name"))
    origin = values.get("from")
    media_type = CONFIG_TYPE if media_type is None and field_name == "config" else media_type
    if not isinstance(media_type, str) or not 0 < len(media_type) <= 255 or not media_type.isprintable():
        raise _wrong(f"{field_name}.mediaType", "a media type")
    if type(size) is not int or not 0 <= size <= MAX_SIZE_BYTES:
        raise _wrong(f"{field_name}.size", f"a number of bytes up to {MAX_SIZE_BYTES}")
    if name is not None and not isinstance(name, str):
        raise _wrong(f"{field_name}.name", "a relative path")
    try:
        parsed = parse_digest(digest if isinstance(digest, str) else "")
    except ApiError as e:
        raise _wrong(f"{field_name}.digest", '"sha256:" and 64 hex digits') from e
    return Layer(
        media_type, parsed, size, _checked_name(field_name, name or ""), origin if isinstance(origin, str) else ""
    )


def _checked_name(field_name: str, name: str) -> str:
    """Return a layer's name; raise ModelError where it could leave the folder that it is a path in."""
    if name and not is_relative(name):
        raise _wrong(f"{field_name}.name", "a relative path without '..'")
    return name


def is_relative(path: str) -> bool:
    """Return whether a path stays in the folder that it starts from and could be a file's there."""
    plain = len(path) <= MAX_NAME_CHARS and path.isprintable() and "\\" not in path
    return plain and all(part not in ("", ".", "..") for part in path.split("/"))


def _check_agreement(layers: tuple[Layer, ...]) -> None:
    """Raise ModelError where layers contradict each other."""
    sizes: dict[Digest, int] = {}
    seen: set[tuple[str, str, str]] = set()
    for layer in layers:
        if sizes.setdefault(layer.digest, layer.size) != layer.size:
            raise ModelError(f"the manifest gives {layer.digest} two sizes; pull the model again")
        identity = (layer.media_type, layer.name, "" if layer.name else layer.digest)
        if identity in seen and layer.media_type != LICENSE_TYPE:
            raise ModelError(f"the manifest names {layer.name or layer.digest} twice; pull the model again")
        seen.add(identity)


def _written(layer: Layer) -> dict[str, Any]:
    """Return a layer as JSON has it."""
    more = {"from": layer.origin, "name": layer.name}
    told = {key: value for key, value in more.items() if value}
    return {"mediaType": layer.media_type, "digest": str(layer.digest), "size": layer.size, **told}


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object; readers disagree on which of two equal keys counts."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key comes twice")
    return found


def _wrong(field_name: str, expected: str) -> ModelError:
    return ModelError(f"the manifest's {field_name} must be {expected}; pull the model again")
