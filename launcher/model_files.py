"""Find the files of a model on this machine that a server needs, and read their digests."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

from ollampi.mpiruntime.checkpoint_files import INDEX, weight_files
from ollampi.mpiruntime.errors import ModelError, OllampiError
from ollampi.mpiruntime.gguf_header import gguf_parts
from ollampi.mpiruntime.tokenizer_file import TOKENIZER_FILES

_GGUF_MAGIC = b"GGUF"
_PIECE_BYTES = 1 << 20
_TEXTS = (  # beside the weights; a glob takes what there is
    "config.json",
    "generation_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    *TOKENIZER_FILES,
    "chat_template.jinja",
    "chat_template.json",
    "additional_chat_templates/*.jinja",
    "modules.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
    "1_Pooling/config.json",
)
_ADAPTER = ("adapter_config.json", "adapter_model.safetensors")


def model_files(path: Path) -> dict[str, Path]:
    """Return the files of a GGUF model or a folder by their names in it, and nothing that could run code.

    Raise OllampiError where it holds no model.
    """
    if not path.is_dir():
        return _gguf(path)
    if (path / "config.json").is_file():
        texts = [found for name in _TEXTS for found in sorted(path.glob(name))]
        index = [path / INDEX] if (path / INDEX).is_file() else []
        return _named(path, [*texts, *index, *weight_files(path)])
    files = sorted(path.glob("*.gguf"))
    if len(files) != 1:
        found = f"{len(files)} GGUF files: name one of {', '.join(file.name for file in files)}"
        raise ModelError(f"{path} holds {found if files else 'neither a config.json nor a GGUF file'}")
    return _gguf(files[0])


def adapter_files(path: Path) -> dict[str, Path]:
    """Return the files of an adapter: a GGUF file, or a folder as PEFT writes it; raise OllampiError."""
    if not path.is_dir():
        return _gguf(path)
    missing = next((name for name in _ADAPTER if not (path / name).is_file()), None)
    if missing:
        raise ModelError(f"{path} holds no {missing}; an adapter is a folder as PEFT's save_pretrained writes it")
    return _named(path, [path / name for name in _ADAPTER])


def digest(file: Path, note: Callable[[int, int], None]) -> tuple[str, int]:
    """Return the digest of a file and how many bytes it covers; `note` takes the bytes read and all."""
    try:
        total, passed, hashed = file.stat().st_size, 0, hashlib.sha256()
        with file.open("rb") as opened:
            while piece := opened.read(_PIECE_BYTES):
                hashed.update(piece)
                passed += len(piece)
                note(passed, total)
    except OSError as error:
        raise _unreadable(file, error) from error
    return f"sha256:{hashed.hexdigest()}", passed


def pieces(file: Path, size: int, note: Callable[[int, int], None]) -> Iterator[bytes]:
    """Yield the first `size` bytes of a file; raise OllampiError where there are fewer."""
    passed = 0
    try:
        with file.open("rb") as opened:
            while piece := opened.read(min(_PIECE_BYTES, size - passed)):
                passed += len(piece)
                yield piece
                note(passed, size)
    except OSError as error:
        raise _unreadable(file, error) from error
    if passed < size:
        raise OllampiError(f"{file} became shorter while it was read; try again when nobody writes it")


def _gguf(path: Path) -> dict[str, Path]:
    """Return a GGUF file by its name; Ollama's blobs have no suffix, so the content tells."""
    if len(gguf_parts(path)) > 1:
        raise ModelError(f"{path} is part of a model; merge the parts with llama.cpp's `gguf-split --merge`")
    try:
        with path.open("rb") as opened:
            if opened.read(len(_GGUF_MAGIC)) != _GGUF_MAGIC:
                raise ModelError(f"{path} is no GGUF file; name one, or the folder that holds config.json")
    except OSError as error:
        raise _unreadable(path, error) from error
    return {path.name: path}


def _named(folder: Path, files: list[Path]) -> dict[str, Path]:
    return {file.relative_to(folder).as_posix(): file for file in files if file.is_file()}


def _unreadable(file: Path, error: OSError) -> OllampiError:
    return OllampiError(f"cannot read {file}: {(error.strerror or str(error)).lower()}")
