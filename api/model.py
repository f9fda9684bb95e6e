"""Describe one Hugging Face model folder, or one GGUF file: its config, tokens, template, sizes and what it can do."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ollampi.api.details import details, gguf_details, positive
from ollampi.api.names import Name
from ollampi.api.pooling import LAST_TOKEN, LENGTH_FILE, MEAN, POOLING_FILE, longest_input, pooling_of
from ollampi.api.text_source import TEXT_FILES, TextSource, folder_source, gguf_source
from ollampi.api.tools.dialects import dialect_of
from ollampi.mpiruntime.errors import ModelError
from ollampi.mpiruntime.families import ENCODERS
from ollampi.mpiruntime.folder_templates import TEMPLATES_FOLDER
from ollampi.mpiruntime.gguf_config import gguf_config
from ollampi.mpiruntime.gguf_header import gguf_parts, read_gguf
from ollampi.mpiruntime.json_file import read_json, small_file
from ollampi.mpiruntime.model_config import is_headless
from ollampi.mpiruntime.request import ModelRef
from ollampi.mpiruntime.safetensors_header import TensorEntry, parse_header, read_header_bytes

MAX_FAMILY_CHARS = 100
LATEST_S = 253402128000.0  # the end of the year 9999; file systems know later times, dates do not
SAMPLE_BYTES = 64 << 10  # at each end of a weights file
_WATCHED = ("config.json", *TEXT_FILES, POOLING_FILE, LENGTH_FILE)

_GGUF_POOLINGS = {"cls": "first"}

Fingerprint = tuple[tuple[str, int, int], ...]


@dataclass(frozen=True)
class Model:
    """What the HTTP layer knows of a model; config holds config.json, details is as /api/tags shows it.

    texts: its tokenizer, templates and special tokens;
    pooling: how hidden states become an embedding: "last", "mean", or another name where we cannot do it;
    longest_input: tokens of a text to embed that count, None for as many as the context holds.
    Only a model of the store has: template: Go's, goes before the templates of its texts; system, parameters (options),
    messages ({role, content}): what requests have that say nothing else; licenses: texts; adapters: folders of LoRA
    adapters; is_stored.
    """

    name: Name
    path: Path
    config: dict[str, Any]
    texts: TextSource
    modified_at: float
    size_bytes: int
    digest: str
    details: dict[str, Any]
    tensors: list[TensorEntry]
    pooling: str
    longest_input: int | None
    capabilities: list[str]
    template: str = ""
    system: str = ""
    parameters: dict[str, Any] = field(default_factory=dict)
    messages: list[dict[str, str]] = field(default_factory=list)
    licenses: list[str] = field(default_factory=list)
    adapters: tuple[str, ...] = ()
    is_stored: bool = False

    @property
    def full_name(self) -> str:
        """Return model:tag."""
        return self.name.short

    @property
    def ref(self) -> ModelRef:
        """Return the model as the engine knows it."""
        return ModelRef(self.full_name, str(self.path), self.adapters)

    @property
    def text_config(self) -> dict[str, Any]:
        """Return the part of the config that describes the language model."""
        return _text_config(self.config)

    @property
    def context_length(self) -> int:
        """Return the longest context that the model was trained for."""
        return positive(self.text_config, "max_position_embeddings", 2048)

    @property
    def num_parameters(self) -> int:
        """Return the number of values in all tensors."""
        return sum(tensor.num_elements for tensor in self.tensors)


def fingerprint(path: Path) -> Fingerprint:
    """Return names, times and sizes of the files that make a model; equal ones mean an unchanged model."""
    files = [*_watched(path), *sorted(path.glob("*.safetensors"))] if path.is_dir() else gguf_parts(path)
    stats = [(file.name, file.stat()) for file in files if file.is_file()]
    return tuple((name, stat.st_mtime_ns, stat.st_size) for name, stat in stats)


def _watched(path: Path) -> list[Path]:
    """Return the files of a folder, but for its weights, that decide what its model is; not all need be there."""
    return [*(path / name for name in _WATCHED), *sorted((path / TEMPLATES_FOLDER).glob("*.jinja"))]


def read_model(name: Name, path: Path) -> Model:
    """Return the model in folder `path`; raise ModelError with the model and the file where it cannot be one."""
    try:
        return _read_model(name, path) if path.is_dir() else _read_gguf_model(name, path)
    except OSError as e:
        raise ModelError(f"model {name.short} cannot be read: {e.strerror}; check its files") from e
    except ModelError as e:
        folder = path if path.is_dir() else path.parent
        raise ModelError(f"model {name.short}: {str(e).replace(f'{folder}/', '')}") from e.__cause__


def _read_model(name: Name, path: Path) -> Model:
    _check_text("the folder's path", str(path))
    config = read_json(path / "config.json")
    if not isinstance(config.get("model_type"), str) or len(config["model_type"]) > MAX_FAMILY_CHARS:
        raise ModelError("config.json has no usable model_type; copy the file again")
    text_config = _text_config(config)
    texts = folder_source(path, text_config)
    tensors, digest, size_bytes = _weights(path)
    encoder = config["model_type"] in ENCODERS
    embeds = encoder or (path / POOLING_FILE).is_file() or is_headless(config)
    return Model(
        name=name,
        path=path,
        config=config,
        texts=texts,
        modified_at=min(max(0, *(time_ns for _, time_ns, _ in fingerprint(path))) / 1e9, LATEST_S),
        size_bytes=size_bytes,
        digest=digest,
        details=details(config, text_config, tensors),
        tensors=tensors,
        pooling=pooling_of(path, read_json(path / POOLING_FILE, MEAN if encoder else LAST_TOKEN)),
        longest_input=longest_input(read_json(path / LENGTH_FILE, {})),
        capabilities=_capabilities(texts, embeds),
    )


def _read_gguf_model(name: Name, path: Path) -> Model:
    _check_text("the file's path", str(path))
    file = read_gguf(path)
    config = gguf_config(file)
    texts = gguf_source(lambda: read_gguf(path).metadata)
    tensors = [
        TensorEntry(t.name, t.path, t.blocks.name, t.shape, t.offset, t.size_bytes) for t in file.tensors.values()
    ]
    sizes = fingerprint(path)
    digest = hashlib.sha256(b"".join(_ends(part, 0, part.stat().st_size) for part in gguf_parts(path)))
    digest.update(repr([size for _, _, size in sizes]).encode())
    pooling = _GGUF_POOLINGS.get(config.get("pooling", ""), config.get("pooling"))
    encoder = config["model_type"] in ENCODERS
    return Model(
        name=name,
        path=path,
        config=config,
        texts=texts,
        modified_at=min(max(0, *(time_ns for _, time_ns, _ in sizes)) / 1e9, LATEST_S),
        size_bytes=sum(size for _, _, size in sizes),
        digest=digest.hexdigest(),
        details=gguf_details(file.metadata, config, tensors),
        tensors=tensors,
        pooling=pooling or ("mean" if encoder else "last"),
        longest_input=None,
        capabilities=_capabilities(texts, encoder or pooling is not None),
    )


def _check_text(what: str, text: str) -> None:
    """Raise ModelError for half a surrogate pair, which JSON and file names may hold and no answer can."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ModelError(f"{what} is not valid UTF-8; correct it") from None


def _weights(path: Path) -> tuple[list[TensorEntry], str, int]:
    """Return the tensors, the digest and the bytes of all safetensors files.

    The digest is equal for copies of a folder. Of the tensors it takes in both ends of each file: other weights under
    the same header have another digest, and it is quick with any number of gigabytes.
    """
    digest = hashlib.sha256()
    for file in _watched(path):
        if file.is_file():
            content = small_file(file)
            digest.update(f"{file.relative_to(path)}:{len(content)}:".encode() + content)
    tensors: list[TensorEntry] = []
    total = 0
    for file in sorted(path.glob("*.safetensors")):
        _check_text("the name of a safetensors file", file.name)
        header, size = read_header_bytes(file)
        tensors += parse_header(file, header, size).values()
        digest.update(f"{file.name}:{size}:".encode() + header + _ends(file, 8 + len(header), size))
        total += size
    _check_text("the name of a tensor", "".join(tensor.name for tensor in tensors))
    return tensors, digest.hexdigest(), total


def _ends(file: Path, start: int, size: int) -> bytes:
    """Return the first and the last bytes of the tensors, which go from `start` to `size`."""
    with file.open("rb") as weights:
        weights.seek(start)
        first = weights.read(SAMPLE_BYTES)
        weights.seek(max(start, size - SAMPLE_BYTES))
        return first + weights.read(SAMPLE_BYTES)


def _text_config(config: dict[str, Any]) -> dict[str, Any]:
    """Return the language model's part of a config; a model that also sees or hears nests it."""
    nested = config.get("text_config")
    return nested if isinstance(nested, dict) else config


def _capabilities(texts: TextSource, embeds: bool) -> list[str]:
    """Return what clients may ask of the model."""
    if embeds:
        return ["embedding"]
    found = ["completion"]
    template, tools_template = texts.template_for(False), texts.template_for(True)
    if template and ("<think>" in template or "enable_thinking" in template):
        found.append("thinking")
    if tools_template and dialect_of(tools_template) is not None:
        found.append("tools")
    if texts.infill is not None:
        found.append("insert")
    return found
