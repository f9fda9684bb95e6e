"""Refuse a load for which ranks of different hosts see different files under one path."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from ollampi.mpiruntime.errors import CheckpointError
from ollampi.mpiruntime.lora import adapter_files

_HEAD_BYTES = 1 << 20  # of each file, where its header lies
_SAMPLES, _SAMPLE_BYTES = 16, 4096  # of the rest


def digests(folder: Path, files: Iterable[Path], adapters: Iterable[Path] = ()) -> dict[str, str]:
    """Return digests of the model's config, its files and those of adapters by their paths; raise OSError.

    They take in sizes, headers and samples of the content, but no times, in which copies on several hosts may differ.
    """
    config = folder / "config.json"
    small = {config} if config.is_file() else set()
    return {str(path): _digest(path) for path in sorted(small.union(files, *map(adapter_files, adapters)))}


def _digest(path: Path) -> str:
    """Return the digest of one file; raise OSError."""
    with path.open("rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        digest = hashlib.blake2b(f"{size}:".encode() + os.pread(file.fileno(), _HEAD_BYTES, 0), digest_size=16)
        for i in range(_SAMPLES):
            digest.update(os.pread(file.fileno(), _SAMPLE_BYTES, max(0, size - _SAMPLE_BYTES) * i // (_SAMPLES - 1)))
    return digest.hexdigest()


def check_same(hosts: Sequence[str], found: Sequence[Mapping[str, str]], ranks: Sequence[int] = ()) -> None:
    """Raise CheckpointError where the digests of any rank differ from those of the first; both in rank order.

    ranks: what they are called where they are not all ranks of the world.
    """
    names = ranks or range(len(found))
    for place, theirs in enumerate(found):
        for path in sorted(found[0].keys() | theirs.keys()):
            if found[0].get(path) != theirs.get(path):
                raise CheckpointError(
                    f"rank {names[0]} on {hosts[0]} and rank {names[place]} on {hosts[place]} see different files at"
                    f" {path}; give all hosts the same copy, or a path that they share"
                )
