"""Find the safetensors files of a model folder, and the tensors in them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ollampi.mpiruntime.errors import CheckpointError
from ollampi.mpiruntime.safetensors_header import TensorEntry, read_header
from ollampi.mpiruntime.strict_json import read_object

INDEX = "model.safetensors.index.json"
MAX_FILES = 10_000
MAX_TENSORS = 500_000  # of all files
MAX_INDEX_BYTES = 64 << 20
_OTHERS = (".bin", ".pt", ".pth", ".pkl", ".ckpt", ".h5", ".msgpack", ".npz", ".onnx")


def checkpoint_entries(folder: Path) -> dict[str, TensorEntry]:
    """Return the tensors of model.safetensors, else of the files that the index names, else of all *.safetensors.

    transformers takes the first two in the same order. Raise CheckpointError where files are missing or damaged, or
    the index and the files do not say the same.
    """
    index = folder / INDEX
    indexed = _weight_map(index) if index.is_file() and not (folder / "model.safetensors").is_file() else {}
    entries: dict[str, TensorEntry] = {}
    for path in _indexed_files(index, indexed) if indexed else _plain_files(folder):
        for name, entry in read_header(path).items():
            if name in entries:
                raise CheckpointError(f"tensor {name!r} is in {entries[name].path.name} and in {path.name} of {folder}")
            entries[name] = entry
        if len(entries) > MAX_TENSORS:
            raise CheckpointError(f"{folder} has more than {MAX_TENSORS} tensors, which is the limit")
    for name, file in indexed.items():
        if name not in entries or entries[name].path.name != file:
            where = f"in {entries[name].path.name}" if name in entries else "in none of its files"
            raise CheckpointError(f"{index} names tensor {name[:200]!r} in {file}; it is {where}, fetch both again")
    return entries


def weight_files(folder: Path) -> list[Path]:
    """Return the safetensors files that `checkpoint_entries` reads; raise CheckpointError where there are none."""
    index = folder / INDEX
    indexed = _weight_map(index) if index.is_file() and not (folder / "model.safetensors").is_file() else {}
    return _indexed_files(index, indexed) if indexed else _plain_files(folder)


def _plain_files(folder: Path) -> list[Path]:
    """Return the safetensors files of a folder without an index."""
    single = folder / "model.safetensors"
    files = [single] if single.is_file() else sorted(folder.glob("*.safetensors"))
    if not files:
        others = sorted(p.name for p in folder.glob("*") if p.suffix in _OTHERS)
        hint = "".join(f"; {name} may run code and is not read, convert it to safetensors" for name in others[:1])
        raise CheckpointError(f"no *.safetensors in {folder}{hint}")
    return files


def _weight_map(index: Path) -> dict[str, Any]:
    """Return the index's map of tensor names to file names."""
    names = read_object(index, MAX_INDEX_BYTES, 2 * MAX_TENSORS + 1000).get("weight_map")
    if not isinstance(names, dict) or not names:
        raise CheckpointError(f"{index} holds no weight_map of tensor names to file names")
    return names


def _indexed_files(index: Path, weight_map: dict[str, Any]) -> list[Path]:
    """Return the files that an index names; all must lie beside it."""
    files: dict[str, Path] = {}
    for name in weight_map.values():
        if not isinstance(name, str) or not _is_plain(name):
            shown = str(name)[:200]
            raise CheckpointError(f"{index} names the file {shown!r}; it must be a *.safetensors file beside the index")
        files[name] = index.parent / name
        if len(files) > MAX_FILES:
            raise CheckpointError(f"{index} names more than {MAX_FILES} files, which is the limit")
    for name, path in files.items():
        if not path.is_file():
            raise CheckpointError(f"{path} is missing; {INDEX} names {name}, fetch it again")
    return [files[name] for name in sorted(files)]


def _is_plain(name: str) -> bool:
    """Return whether a name is one of a *.safetensors file, without a folder and of characters that can be shown."""
    whole = name.isprintable() and len(name.encode()) < 256 and Path(name).name == name
    return whole and name.endswith(".safetensors")
