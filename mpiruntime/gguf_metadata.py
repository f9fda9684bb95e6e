"""Take what describes a model out of a GGUF file's metadata, with types and ranges checked."""

from __future__ import annotations

import struct

from ollampi.mpiruntime.errors import CheckpointError, ModelError
from ollampi.mpiruntime.gguf_fields import Value
from ollampi.mpiruntime.gguf_header import GgufFile, GgufTensor

_MOST = 1 << 31
_MOST_SHOWN = 1 << 16  # numbers of a tensor that becomes part of a config


class Metadata:
    """The keys of one architecture; `llama.block_count` is `block_count` here. Errors name the file and the key."""

    def __init__(self, file: GgufFile, architecture: str) -> None:
        self.file = file
        self.architecture = architecture

    def wrong(self, key: str, must: str) -> ModelError:
        """Return the error for a value that is missing or cannot be."""
        name = f"{self.architecture}.{key}"
        told = "is missing" if name not in self.file.metadata else f"is {self.file.metadata[name]!r:.60}"
        return ModelError(f"{self.file.path}: {name} {told}; {must}")

    def get(self, key: str) -> Value | None:
        """Return the value as it is, or None where there is none."""
        return self.file.metadata.get(f"{self.architecture}.{key}")

    def whole(self, key: str, default: int | None = None) -> int:
        """Return a positive whole number; a list of it for each layer counts where all are equal."""
        value = self.get(key)
        if value is None and default is not None:
            return default
        if isinstance(value, list) and value and value.count(value[0]) == len(value):
            value = value[0]
        if isinstance(value, list):
            raise self.wrong(key, "layers that differ in it are not supported, all must have the same number")
        if type(value) is not int or not 0 < value < _MOST:
            raise self.wrong(key, f"it must be a whole number from 1 to {_MOST - 1}")
        return value

    def count(self, key: str) -> int | None:
        """Return a positive whole number, or None where it is zero or missing."""
        return None if self.get(key) in (None, 0) else self.whole(key)

    def number(self, key: str, default: float | None = None) -> float:
        """Return a positive number."""
        value = self.get(key)
        if value is None and default is not None:
            return default
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1e12:
            raise self.wrong(key, "it must be a number above 0")
        return float(value)

    def optional(self, key: str, default: float | None = None) -> float | None:
        """Return a positive number, None where it is zero, `default` where it is missing."""
        value = self.get(key)
        if value is None:
            return default
        return None if value == 0 else self.number(key)

    def text(self, key: str, default: str) -> str:
        """Return a string."""
        value = self.get(key)
        if value is None:
            return default
        if not isinstance(value, str):
            raise self.wrong(key, "it must be a string")
        return value

    def flag(self, key: str, default: bool) -> bool:
        """Return a boolean."""
        value = self.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.wrong(key, "it must be true or false")
        return value

    def tensor(self, *names: str) -> GgufTensor:
        """Return the first tensor of these names that the file has; raise CheckpointError where it has none."""
        found = next((self.file.tensors[name] for name in names if name in self.file.tensors), None)
        if found is None:
            raise CheckpointError(
                f"{self.file.path}: tensor {names[0]!r} is missing, a {self.architecture} model has it;"
                " fetch the file again"
            )
        return found

    def numbers(self, name: str) -> list[float]:
        """Return the numbers of a short F32 vector; raise CheckpointError where it is something else."""
        tensor = self.tensor(name)
        if tensor.blocks.name != "F32" or len(tensor.shape) != 1 or tensor.shape[0] > _MOST_SHOWN:
            raise CheckpointError(
                f"{tensor.path}: tensor {name!r} is {tensor.blocks.name} of shape {list(tensor.shape)};"
                f" it must be F32 with one dimension of at most {_MOST_SHOWN}"
            )
        try:
            with tensor.path.open("rb") as file:
                file.seek(tensor.offset)
                values = list(struct.unpack(f"<{tensor.shape[0]}f", file.read(tensor.size_bytes)))
        except (OSError, struct.error) as e:
            raise CheckpointError(f"{tensor.path}: tensor {name!r} cannot be read ({e}); fetch the file again") from e
        if not all(0 < value < 1e12 for value in values):
            raise CheckpointError(f"{tensor.path}: tensor {name!r} must hold numbers above 0; fetch the file again")
        return values
