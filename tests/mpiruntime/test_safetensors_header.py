"""Headers of safetensors files are read, or refused where they are damaged or lie."""

from __future__ import annotations

import json
import random
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from ollampi.mpiruntime.errors import CheckpointError
from ollampi.mpiruntime.gguf_header import read_gguf
from ollampi.mpiruntime.safetensors_header import read_header


def header_file(path: Path, header: Any, length: int | None = None, data: bytes = b"") -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def entry(dtype: Any = "F32", shape: tuple[Any, ...] = (2,), offsets: tuple[int, ...] = (0, 8)) -> dict[str, Any]:
    return {"x": {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}}


def test_a_sound_header_is_read(tmp_path: Path) -> None:
    header = {"__metadata__": {"format": "pt"}, **entry()}
    tensor = read_header(header_file(tmp_path / "m.safetensors", header, data=bytes(8)))["x"]
    assert (tensor.name, tensor.dtype, tensor.shape, tensor.num_elements) == ("x", "F32", (2,), 2)


@pytest.mark.parametrize(
    ("header", "length"),
    [
        (b"", 2**63),
        (b"", 2**31),
        (b"", 200 << 20),
        (b"{", None),
        (b"[]", None),
        (b"[" * 100_000, None),
        (entry(offsets=(0, 9)), None),
        (entry(offsets=(8, 0)), None),
        (entry(offsets=(-8, 0)), None),
        (entry(offsets=(1, 9)), None),
        (entry(shape=(-2,)), None),
        (entry(shape=(2**40, 2**40)), None),
        (entry(shape=("a",)), None),
        (entry(shape=(True,)), None),
        (entry(dtype=5), None),
        (entry(dtype=["F32"]), None),
        (entry(dtype="F31"), None),
        (entry(offsets=(0,)), None),
        ({"x": 5}, None),
        ({}, None),  # eight bytes that no tensor owns
        (
            b'{"x":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"x":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}',
            None,
        ),
    ],
)
def test_damaged_headers_are_refused(tmp_path: Path, header: Any, length: int | None) -> None:
    with pytest.raises(CheckpointError):
        read_header(header_file(tmp_path / "m.safetensors", header, length, bytes(8)))


@pytest.mark.parametrize(
    ("header", "told"),
    [
        (b'{"x": {"dtype": "F32"}, "x": {"dtype": "F32"}}', "lacks dtype"),
        (b'{"x":{"dtype":"F32","shape":[2],"data_offsets":[0,8],"dtype":"F32"}}', "a key comes twice"),
        (b'{"x":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"\\u0078":{}}', "'x' comes twice"),
        (
            b'{"__metadata__":{},"x":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"__metadata__":{}}',
            "'__metadata__' lacks dtype",
        ),
        (
            b'{"__metadata__":{"a":5},"x":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}',
            "'__metadata__' lacks dtype",
        ),
        (b'{"x":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}} {}', "behind its end"),
        (b'{"x":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},}', "byte 54"),
        (b'{"x":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}', "byte 1"),
        (b'{"\xff":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}', "utf-8"),
        (b'{"x":{"dtype":"F32","shape":[' + b"1," * 500 + b'2],"data_offsets":[0,8]}}', "byte 1"),
        (b'{"x":{"dtype":"F32","shape":[1,1,1,1,1,1,1,1,2],"data_offsets":[0,8]}}', "impossible shape"),
        (b'{"x":{"data_offsets":[' + b'"data_offsets",' * 100_001, "more than 100000 tensors"),
    ],
)
def test_headers_that_parsers_disagree_on_are_refused(tmp_path: Path, header: bytes, told: str) -> None:
    with pytest.raises(CheckpointError, match=told):
        read_header(header_file(tmp_path / "m.safetensors", header, data=bytes(8)))


@pytest.mark.parametrize(
    "header",
    [
        b' {"x" : {"shape": [2], "dtype": "F32", "data_offsets": [0, 8], "more": null} } ',
        b'{"__metadata__":{"a":"{}}\\"","b":"}"},"x":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}   ',
        b'{"x":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"__metadata__":null}',
        b'{"\\u0078":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"__metadata__":{}}\n',
    ],
)
def test_headers_may_be_written_in_several_ways(tmp_path: Path, header: bytes) -> None:
    assert read_header(header_file(tmp_path / "m.safetensors", header, data=bytes(8)))["x"].shape == (2,)


def test_metadata_of_megabytes_and_odd_names_are_no_hindrance(tmp_path: Path) -> None:
    tensors = {name: torch.arange(3) for name in ("ü\U0001f600", "a\nb", 'q"\\', "x" * 900)}
    save_file(tensors, tmp_path / "m.safetensors", {"notes": '{[\\]}",' * 500_000})
    assert read_header(tmp_path / "m.safetensors").keys() == tensors.keys()


def test_a_pointer_of_git_lfs_is_told_from_a_damaged_file(tmp_path: Path) -> None:
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
    readers: dict[str, Any] = {"model.safetensors": read_header, "m.gguf": read_gguf}
    for name, read in readers.items():
        (tmp_path / name).write_bytes(pointer)
        with pytest.raises(CheckpointError, match=r"is a pointer of Git LFS, not the file; run `git lfs pull`"):
            read(tmp_path / name)


def test_every_prefix_of_a_good_file_is_refused(tmp_path: Path) -> None:
    whole = header_file(tmp_path / "m.safetensors", entry(), data=bytes(8)).read_bytes()
    for size in range(len(whole)):
        (tmp_path / "m.safetensors").write_bytes(whole[:size])
        with pytest.raises(CheckpointError):
            read_header(tmp_path / "m.safetensors")


def test_random_damage_is_refused_or_read_but_never_anything_else(tmp_path: Path) -> None:
    rng = random.Random(5)
    save_file({"a": torch.zeros(3, 4), "b": torch.ones(5)}, tmp_path / "good.safetensors")
    good = (tmp_path / "good.safetensors").read_bytes()
    refused = 0
    for _ in range(2000):
        data = bytearray(good)
        for _ in range(rng.randint(1, 3)):
            data[rng.randrange(len(data) - 68)] = rng.randrange(256)
        (tmp_path / "bad.safetensors").write_bytes(data[: rng.choice([len(data), rng.randrange(len(data))])])
        try:
            read_header(tmp_path / "bad.safetensors")
        except CheckpointError:
            refused += 1
    assert refused > 1500
