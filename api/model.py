"""Describe one Hugging Face model folder: its config, tokens, template, sizes and what it can do."""

from __future__ import annotations

import hashlib
import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from ollampi.api.details import details, positive
from ollampi.api.names import Name
from ollampi.api.pooling import LAST_TOKEN, LENGTH_FILE, POOLING_FILE, longest_input, pooling_of
from ollampi.mpiruntime.errors import ModelError
from ollampi.mpiruntime.model_config import is_headless
from ollampi.mpiruntime.request import ModelRef
from ollampi.mpiruntime.safetensors_header import TensorEntry, parse_header, read_header_bytes

MAX_JSON_BYTES = 64 << 20
MAX_TEMPLATE_CHARS = 1 << 20
MAX_FAMILY_CHARS = 100
LATEST_S = 253402128000.0  # the end of the year 9999; file systems know later times, dates do not
SAMPLE_BYTES = 64 << 10  # at each end of a weights file
_WATCHED = (
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "generation_config.json",
    "chat_template.jinja",
    POOLING_FILE,
    LENGTH_FILE,
)
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")

Fingerprint = tuple[tuple[str, int, int], ...]


@dataclass(frozen=True)
class Model:
    """What the HTTP layer knows of a model; config holds config.json, details is as /api/tags shows it.

    pooling: how hidden states become an embedding: "last", "mean", or another name where we cannot do it;
    longest_input: tokens of a text to embed that count, None for as many as the context holds.
    """

    name: Name
    path: Path
    config: dict[str, Any]
    chat_template: str | None
    bos_token: str
    eos_token: str
    bos_token_id: int | None
    eos_token_ids: list[int]
    modified_at: float
    size_bytes: int
    digest: str
    details: dict[str, Any]
    tensors: list[TensorEntry]
    pooling: str
    longest_input: int | None
    capabilities: list[str]

    @property
    def full_name(self) -> str:
        """Return model:tag."""
        return self.name.short

    @property
    def ref(self) -> ModelRef:
        """Return the model as the engine knows it."""
        return ModelRef(self.full_name, str(self.path))

    @property
    def tokenizer_path(self) -> Path:
        """Return where the tokenizer lies."""
        return self.path / "tokenizer.json"

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
    files = [path / name for name in _WATCHED] + sorted(path.glob("*.safetensors"))
    stats = [(file.name, file.stat()) for file in files if file.is_file()]
    return tuple((name, stat.st_mtime_ns, stat.st_size) for name, stat in stats)


def read_model(name: Name, path: Path) -> Model:
    """Return the model in folder `path`; raise ModelError with the model and the file where it cannot be one."""
    try:
        return _read_model(name, path)
    except OSError as e:
        raise ModelError(f"model {name.short} cannot be read: {e.strerror}; check its files") from e
    except ModelError as e:
        raise ModelError(f"model {name.short}: {str(e).replace(f'{path}/', '')}") from e.__cause__


def _read_model(name: Name, path: Path) -> Model:
    _check_text("the folder's path", str(path))
    if not (path / "tokenizer.json").is_file():
        raise ModelError("tokenizer.json is missing; convert the model's tokenizer with transformers and copy it here")
    config = read_json(path / "config.json")
    if not isinstance(config.get("model_type"), str) or len(config["model_type"]) > MAX_FAMILY_CHARS:
        raise ModelError("config.json has no usable model_type; copy the file again")
    generation = read_json(path / "generation_config.json", {})
    tokens = read_json(path / "tokenizer_config.json", {})
    template = _chat_template(path, tokens)
    tensors, digest, size_bytes = _weights(path)
    text_config = _text_config(config)
    return Model(
        name=name,
        path=path,
        config=config,
        chat_template=template,
        bos_token=_token_text(tokens.get("bos_token")),
        eos_token=_token_text(tokens.get("eos_token")),
        bos_token_id=next(iter(_ids(generation.get("bos_token_id", text_config.get("bos_token_id")))), None),
        eos_token_ids=_ids(generation.get("eos_token_id", text_config.get("eos_token_id"))),
        modified_at=min(max(0, *(time_ns for _, time_ns, _ in fingerprint(path))) / 1e9, LATEST_S),
        size_bytes=size_bytes,
        digest=digest,
        details=details(config, text_config, tensors),
        tensors=tensors,
        pooling=pooling_of(path, read_json(path / POOLING_FILE, LAST_TOKEN)),
        longest_input=longest_input(read_json(path / LENGTH_FILE, {})),
        capabilities=_capabilities(template, (path / POOLING_FILE).is_file() or is_headless(config)),
    )


def read_json(path: Path, default: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return the JSON object in a file, or `default` where there is no file; raise ModelError."""
    if default is not None and not path.is_file():
        return default
    raw = _small_file(path)
    try:
        text = raw.decode()
        values = json.loads(text, parse_constant=_refuse, parse_float=_finite)
        if _SURROGATE.search(text):
            json.dumps(values, ensure_ascii=False).encode()  # a ValueError where one half has no other
    except (ValueError, RecursionError) as e:
        raise ModelError(f"{path.name} is not valid JSON in UTF-8; copy the file again") from e
    if not isinstance(values, dict):
        raise ModelError(f"{path.name} must hold a JSON object; copy the file again")
    return values


def _small_file(path: Path) -> bytes:
    """Return the content of a regular file of no absurd size; raise ModelError, OSError."""
    if not path.is_file():
        raise ModelError(f"{path.name} is no regular file; copy it again")
    if path.stat().st_size > MAX_JSON_BYTES:
        raise ModelError(f"{path.name} is larger than {MAX_JSON_BYTES} bytes; copy the model again")
    return path.read_bytes()


def _refuse(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _finite(text: str) -> float:
    """Return a number that can be written as JSON again; 1e999 cannot."""
    value = float(text)
    return value if math.isfinite(value) else _refuse(text)


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
    for name in _WATCHED:
        if (path / name).is_file():
            content = _small_file(path / name)
            digest.update(f"{name}:{len(content)}:".encode() + content)
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


def _chat_template(path: Path, tokens: dict[str, Any]) -> str | None:
    """Return the chat template's source, or None for a model that only completes text; raise ModelError."""
    file = path / "chat_template.jinja"
    source = _small_file(file).decode(errors="replace") if file.is_file() else tokens.get("chat_template")
    if isinstance(source, list):  # [{"name": "default", "template": ...}, ...]
        named = {e["name"]: e.get("template") for e in source if isinstance(e, dict) and isinstance(e.get("name"), str)}
        source = named.get("default", next(iter(named.values()), None))
    if not isinstance(source, str) or not source:
        return None
    if len(source) > MAX_TEMPLATE_CHARS:
        raise ModelError(f"the chat template has more than {MAX_TEMPLATE_CHARS} characters; shorten it")
    return source


def _text_config(config: dict[str, Any]) -> dict[str, Any]:
    """Return the language model's part of a config; a model that also sees or hears nests it."""
    nested = config.get("text_config")
    return nested if isinstance(nested, dict) else config


def _token_text(value: object) -> str:
    """Return a token that is written as text or as {"content": text}."""
    text = value.get("content") if isinstance(value, dict) else value
    return text if isinstance(text, str) else ""


def _ids(value: object) -> list[int]:
    """Return token ids that are written as one number, a list, or not at all; what can be no id is left out."""
    values = value if isinstance(value, list) else [value]
    return [item for item in values if type(item) is int and 0 <= item < 2**31]


def _capabilities(template: str | None, embeds: bool) -> list[str]:
    """Return what clients may ask of the model; "tools" will come with the parsers of tool calls."""
    if embeds:
        return ["embedding"]
    found = ["completion"]
    if template and ("<think>" in template or "enable_thinking" in template):
        found.append("thinking")
    return found
