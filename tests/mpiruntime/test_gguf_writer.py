"""What is written is what the gguf package, and our own reader, find in the file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from ollampi.mpiruntime.errors import CheckpointError
from ollampi.mpiruntime.gguf_header import read_entries, read_gguf
from ollampi.mpiruntime.gguf_writer import Kind, NewTensor, blocks_of, entry, write_gguf

VALUES: dict[str, tuple[Any, Kind | None, gguf.GGUFValueType]] = {
    **{
        f"n.{kind.name}": (7, kind, gguf.GGUFValueType[kind.name])
        for kind in Kind
        if kind.name.startswith(("UINT", "INT"))
    },
    "n.low": (-(2**40), None, gguf.GGUFValueType.INT64),
    "n.high": (2**40, None, gguf.GGUFValueType.UINT64),
    "n.plain": (2**32 - 1, None, gguf.GGUFValueType.UINT32),
    "n.below": (-1, None, gguf.GGUFValueType.INT32),
    "f.32": (0.5, None, gguf.GGUFValueType.FLOAT32),
    "f.64": (0.1, Kind.FLOAT64, gguf.GGUFValueType.FLOAT64),
    "b": (True, None, gguf.GGUFValueType.BOOL),
    "s": ("Käse 🙂", None, gguf.GGUFValueType.STRING),
    "a.s": (["", "a", "é"], None, gguf.GGUFValueType.STRING),
    "a.i": ([1, 2, 3], Kind.INT32, gguf.GGUFValueType.INT32),
    "a.f": ([1.5, -2], None, gguf.GGUFValueType.FLOAT32),
    "a.b": ([True, False], None, gguf.GGUFValueType.BOOL),
}


def rows(name: str, values: np.ndarray[Any, Any], pieces: int = 1, kind: str = "F32") -> NewTensor:
    def parts() -> Iterator[bytes]:
        raw = values.tobytes()
        step = -(-len(raw) // pieces)
        for at in range(0, len(raw), step):
            yield raw[at : at + step]

    return NewTensor(name, blocks_of(kind), values.shape, parts)


def test_values_of_all_types_are_found_by_the_gguf_package(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf", {key: entry(key, value, kind) for key, (value, kind, _) in VALUES.items()}, [])
    reader = gguf.GGUFReader(tmp_path / "m.gguf")
    for key, (value, _, kind) in VALUES.items():
        field = reader.get_field(key)
        assert field is not None
        assert field.types[-1] == kind, key
        assert field.contents() == value
    assert read_gguf(tmp_path / "m.gguf").metadata == {key: value for key, (value, _, _) in VALUES.items()}


def test_lists_in_lists_and_empty_ones_are_read_back(tmp_path: Path) -> None:
    values: dict[str, Any] = {"nested": [[1, 2], [3]], "empty": [], "of empty": [[], []]}
    write_gguf(tmp_path / "m.gguf", {key: entry(key, value) for key, value in values.items()}, [])
    assert read_gguf(tmp_path / "m.gguf").metadata == values


def test_a_value_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match=r"300.*UINT8"):
        entry("n", 300, Kind.UINT8)


def test_tensors_are_found_where_the_table_says(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    wanted = {
        "a.weight": rng.standard_normal((3, 5)).astype(np.float32),
        "b.weight": rng.standard_normal(7).astype(np.float32),
        "c.weight": rng.standard_normal((2, 3, 4)).astype(np.float32),
    }
    tensors = [rows(name, values, pieces) for pieces, (name, values) in enumerate(wanted.items(), 1)]
    write_gguf(tmp_path / "m.gguf", {"general.architecture": entry("general.architecture", "llama")}, tensors)
    reader = gguf.GGUFReader(tmp_path / "m.gguf")
    assert [tensor.name for tensor in reader.tensors] == list(wanted)
    for tensor in reader.tensors:
        np.testing.assert_array_equal(tensor.data, wanted[tensor.name])
    found = read_gguf(tmp_path / "m.gguf").tensors
    assert {name: tensor.shape for name, tensor in found.items()} == {n: v.shape for n, v in wanted.items()}


def test_entries_are_copied_byte_for_byte(tmp_path: Path) -> None:
    entries = {key: entry(key, value, kind) for key, (value, kind, _) in VALUES.items()}
    write_gguf(tmp_path / "m.gguf", entries, [])
    assert read_entries(tmp_path / "m.gguf") == entries


def test_a_file_that_fails_is_removed(tmp_path: Path) -> None:
    short = NewTensor("a.weight", blocks_of("F32"), (2, 2), lambda: [b"1234"])
    with pytest.raises(CheckpointError, match=r"'a\.weight' has 4 bytes, its shape needs 16"):
        write_gguf(tmp_path / "m.gguf", {}, [short])
    assert not list(tmp_path.iterdir())
