"""Make a GGUF file of a Hugging Face folder: the same numbers in their own types, the same tokens."""

from __future__ import annotations

import struct
from collections.abc import Callable
from functools import partial
from pathlib import Path

from ollampi.mpiruntime.errors import ModelError
from ollampi.mpiruntime.gguf_fields import Value
from ollampi.mpiruntime.gguf_header import GgufFile
from ollampi.mpiruntime.gguf_keys import ARCHITECTURES, check_config, keys_of, rope_tensors
from ollampi.mpiruntime.gguf_mixture import LEVELS
from ollampi.mpiruntime.gguf_tensors import converted_tensors, plain_type
from ollampi.mpiruntime.gguf_vocabulary import vocabulary_of
from ollampi.mpiruntime.gguf_writer import Kind, NewTensor, blocks_of, entry, write_gguf
from ollampi.mpiruntime.model_config import read_config

Progress = Callable[[int, int], None]

_KINDS = {"tokenizer.ggml.token_type": Kind.INT32, "tokenizer.ggml.scores": Kind.FLOAT32}  # as other writers have them


def convert(folder: Path, target: Path, progress: Progress) -> None:
    """Write `target`, the model in `folder` as a GGUF file; runs in any process, without torch.

    progress: called in this thread with the bytes of the folder's tensors that are done and with all of them. Only a
    piece of a tensor is held at a time. Raise ModelError, before anything is written, for a model that a GGUF file
    cannot hold exactly; OSError where a file cannot be read or written, `target` is then removed.
    """
    config = read_config(folder)
    architecture = ARCHITECTURES.get(config.model_type)
    if architecture is None:
        raise ModelError(
            f"{folder}/config.json: {config.model_type} is not converted to GGUF; known are:"
            f" {', '.join(ARCHITECTURES)}, serve the folder as it is"
        )
    tensors = converted_tensors(folder, config, architecture)
    values: dict[str, Value] = {
        "general.architecture": architecture,
        "general.type": "model",
        "general.file_type": LEVELS[plain_type(tensors).lower()][0],
        **keys_of(config, architecture),
        **vocabulary_of(folder, config.vocab_size),
    }
    described = {tensor.name: tensor.described(target) for tensor in tensors}
    check_config(config, GgufFile(target, values, described), f"{folder}/config.json")
    entries = {key: entry(key, value, _KINDS.get(key)) for key, value in values.items()}
    told = _Told(sum(part.size_bytes for tensor in tensors for part in tensor.parts), progress)
    ropes = [_vector(name, numbers) for name, numbers in rope_tensors(config).items()]
    write_gguf(target, entries, [*ropes, *(tensor.new(told.more) for tensor in tensors)])


class _Told:
    """Tells how many bytes of all are done."""

    def __init__(self, total: int, progress: Progress) -> None:
        self._progress, self._total, self._done = progress, total, 0

    def more(self, count: int) -> None:
        """Tell that `count` bytes more are done."""
        self._done += count
        self._progress(self._done, self._total)


def _vector(name: str, numbers: list[float]) -> NewTensor:
    """Return a tensor of a few numbers."""
    return NewTensor(name, blocks_of("F32"), (len(numbers),), partial(_floats, numbers))


def _floats(numbers: list[float]) -> list[bytes | memoryview]:
    return [struct.pack(f"<{len(numbers)}f", *numbers)]
