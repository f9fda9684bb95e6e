"""Headers of GGUF files are read as the gguf package reads them, and refused where they are damaged or lie."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from support.checkpoints import write_checkpoint
from support.gguf_blocks import ALL
from support.gguf_files import finish, write_gguf

from ollampi.mpiruntime import gguf_fields
from ollampi.mpiruntime.errors import CheckpointError
from ollampi.mpiruntime.gguf_header import is_gguf, read_gguf
from ollampi.mpiruntime.gguf_types import BLOCKS, OTHERS

Kind = gguf.GGUFValueType


def text(value: str | bytes) -> bytes:
    raw = value if isinstance(value, bytes) else value.encode()
    return struct.pack("<Q", len(raw)) + raw


def key(name: str | bytes, kind: int, value: bytes) -> bytes:
    return text(name) + struct.pack("<I", kind) + value


def tensor(name: str = "x", shape: tuple[int, ...] = (8,), kind: int = 0, offset: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


def whole(
    keys: tuple[bytes, ...] = (),
    tensors: tuple[bytes, ...] = (),
    data: bytes = b"",
    version: bytes = struct.pack("<I", 3),
    counts: tuple[int, int] | None = None,
    alignment: int = 32,
) -> bytes:
    num_tensors, num_keys = counts or (len(tensors), len(keys))
    raw = b"GGUF" + version + struct.pack("<QQ", num_tensors, num_keys) + b"".join(keys) + b"".join(tensors)
    return raw + bytes(-len(raw) % alignment) + data


def file_of(path: Path, raw: bytes) -> Path:
    path.write_bytes(raw)
    return path


def test_the_table_of_types_is_that_of_the_package() -> None:
    sizes = {kind.value: (kind.name, *size) for kind, size in gguf.GGML_QUANT_SIZES.items()}
    for number, blocks in BLOCKS.items():
        assert sizes[number] == (blocks.name, blocks.values, blocks.size_bytes)
    assert {number: name for number, (name, *_) in sizes.items() if number not in BLOCKS}.items() <= OTHERS.items()


def assert_same(path: Path) -> None:
    """Assert that our reading is the package's."""
    ours, theirs = read_gguf(path), gguf.GGUFReader(path)
    fields = {name: field for name, field in theirs.fields.items() if not name.startswith("GGUF.")}
    assert list(ours.metadata) == list(fields)
    for name, field in fields.items():
        assert ours.metadata[name] == field.contents(), name
        assert type(ours.metadata[name]) is type(field.contents()), name
    assert list(ours.tensors) == [each.name for each in theirs.tensors]
    for each in theirs.tensors:
        mine = ours.tensors[each.name]
        assert (mine.blocks.name, list(mine.shape[::-1])) == (each.tensor_type.name, each.shape.tolist())
        assert (mine.offset, mine.size_bytes) == (each.data_offset, each.n_bytes)


@pytest.mark.parametrize("kind", ALL)
def test_tensors_are_where_the_package_finds_them(tmp_path: Path, kind: str) -> None:
    folder = write_checkpoint(tmp_path / "m", hidden_size=256, intermediate_size=512, num_hidden_layers=1)
    write_gguf(tmp_path / "m.gguf", folder, kind)
    assert_same(tmp_path / "m.gguf")


@pytest.mark.parametrize("alignment", [8, 64, 4096])
def test_values_of_all_types_are_read(tmp_path: Path, alignment: int) -> None:
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_custom_alignment(alignment)
    numbers: dict[gguf.GGUFValueType, list[Any]] = {
        Kind.UINT8: [0, 255], Kind.INT8: [-128, 127], Kind.UINT16: [0, 65535], Kind.INT16: [-(2**15), 7],
        Kind.UINT32: [0, 2**32 - 1], Kind.INT32: [-(2**31), 5], Kind.UINT64: [2**64 - 1], Kind.INT64: [-(2**63)],
        Kind.FLOAT32: [0.5, -1e30], Kind.FLOAT64: [0.1, 1e300], Kind.BOOL: [True, False],
        Kind.STRING: ["", "ä\n", "x" * 5000, "\0"],
    }  # fmt: skip
    for kind, values in numbers.items():
        writer.add_key_value(f"one.{kind.name}", values[-1], kind)
        writer.add_key_value(f"list.{kind.name}", values * 3, Kind.ARRAY, kind)
    writer.add_tensor("a", np.ones((3, 5), np.float32))
    writer.add_tensor("b", np.ones(2, np.float16))
    finish(writer)
    assert_same(tmp_path / "m.gguf")


def test_headers_longer_than_a_piece_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf_fields, "_PIECE_BYTES", 7)
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_token_list([f"token{i}" for i in range(300)])
    writer.add_token_scores([i / 7 for i in range(300)])
    writer.add_tensor("a", np.ones((3, 5), np.float32))
    finish(writer)
    assert_same(tmp_path / "m.gguf")
    short = read_gguf(tmp_path / "m.gguf", tokens=False)
    assert short.tensors == read_gguf(tmp_path / "m.gguf").tensors
    assert short.metadata == {"general.architecture": "llama"}


def test_version_2_and_arrays_in_arrays_are_read(tmp_path: Path) -> None:
    inner = struct.pack("<IQ2B", 0, 2, 5, 6)
    keys = (key("a", 9, struct.pack("<IQ", 9, 2) + inner + struct.pack("<IQ", 8, 1) + text("x")),)
    path = file_of(tmp_path / "m.gguf", whole(keys, (tensor(),), bytes(32), struct.pack("<I", 2)))
    assert read_gguf(path).metadata == {"a": [[5, 6], ["x"]]}
    assert read_gguf(path).tensors["x"].shape == (8,)


HUGE = (2**31, 2**40, 2**63, 2**64 - 1)
DEEP = struct.pack("<IQ", 9, 1) * 5 + struct.pack("<IQ", 0, 0)
LIES: list[tuple[str, bytes]] = [
    *(("number of tensors claims", whole(counts=(count, 0))) for count in HUGE),
    *(("number of keys claims", whole(counts=(0, count))) for count in HUGE),
    *(("'a' claims a string", whole((key("a", 8, struct.pack("<Q", count)),))) for count in HUGE[:3]),
    *(("'a' claims .* items", whole((key("a", 9, struct.pack("<IQ", kind, count)),)))
      for kind in (0, 8, 9, 12) for count in HUGE),
    ("key 1 of 1 claims a string", whole((struct.pack("<Q", 2**40),), counts=(0, 1))),
    ("'a' has the unknown type 13", whole((key("a", 13, bytes(8)),))),
    ("'a' is an array of the unknown type 77", whole((key("a", 9, struct.pack("<IQ", 77, 1)),))),
    ("'a' has arrays in arrays", whole((key("a", 9, DEEP),))),
    ("'a' has a boolean that is neither", whole((key("a", 7, b"\2"),))),
    ("'a' has a string that is not UTF-8", whole((key("a", 8, text(b"\xff")),))),
    ("'a' has a string that is not UTF-8", whole((key("a", 9, struct.pack("<IQ", 8, 1) + text(b"\xff")),))),
    ("'a' comes twice", whole((key("a", 0, b"1"), key("a", 0, b"2")))),
    ("key 1 of 1 has a string that is not UTF-8", whole((key(b"\xc0", 0, b"1"),))),
    ("begins with b'GGUX'", b"GGUX" + bytes(100)),
    ("is big endian", whole(version=struct.pack(">I", 3))),
    ("version 1;", whole(version=struct.pack("<I", 1))),
    ("version 4;", whole(version=struct.pack("<I", 4))),
    *(("general.alignment is", whole((key("general.alignment", 4, struct.pack("<I", n)),), (tensor(),), bytes(64)))
      for n in (0, 3, 2**31, 2**17)),
    ("general.alignment is 'x'", whole((key("general.alignment", 8, text("x")),), (tensor(),), bytes(64))),
    ("general.alignment is -32", whole((key("general.alignment", 5, struct.pack("<i", -32)),))),
    ("general.alignment is True", whole((key("general.alignment", 7, b"\1"),))),
    *(("impossible shape", whole((), (tensor(shape=shape),), bytes(64)))
      for shape in ((0,), (8, 0), (2**32, 2**32), (2**63, 2), (2**48,), (2**16,) * 4)),
    ("has 0 dimensions", whole((), (tensor(shape=()),), bytes(64))),
    ("has 5 dimensions", whole((), (tensor(shape=(1,) * 5),), bytes(64))),
    ("has 4294967295 dimensions", whole((), (text("x") + struct.pack("<I", 2**32 - 1) + bytes(64),), bytes(64))),
    ("rows of 33 numbers, Q8_0 keeps 32", whole((), (tensor(shape=(33,), kind=8),), bytes(64))),
    ("type Q8_K, which is not supported; known are: F32", whole((), (tensor(kind=15),), bytes(64))),
    ("type 99, which is not supported", whole((), (tensor(kind=99),), bytes(64))),
    ("ends at byte", whole((), (tensor(),), bytes(31))),
    ("ends at byte", whole((), (tensor(offset=2**62),), bytes(32))),
    ("begins at byte", whole((), (tensor(offset=8),), bytes(64))),
    ("begins at byte", whole((), (tensor("x"), tensor("y")), bytes(64))),
    ("'x' comes twice", whole((), (tensor("x"), tensor("x", offset=32)), bytes(64))),
    ("tensor 1 claims a string of 257 bytes", whole((), (tensor("x" * 257),), bytes(64))),
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(LIES)))
@pytest.mark.parametrize("tokens", [True, False])
def test_headers_that_lie_are_refused(tmp_path: Path, number: int, tokens: bool) -> None:
    words, raw = LIES[number]
    path = file_of(tmp_path / "m.gguf", raw + bytes(100 if b"claims" in words.encode() else 0))
    with pytest.raises(CheckpointError, match=words) as caught:
        read_gguf(path, tokens=tokens)
    assert str(path) in str(caught.value)


def test_items_of_all_arrays_and_the_header_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    array = struct.pack("<IQ", 0, 60) + bytes(60)
    path = file_of(tmp_path / "m.gguf", whole((key("a", 9, array), key("tokenizer.b", 9, array))))
    assert len(read_gguf(path).metadata) == 2
    monkeypatch.setattr(gguf_fields, "MAX_ITEMS", 100)
    for tokens in (True, False):
        with pytest.raises(CheckpointError, match="items of all arrays to 120"):
            read_gguf(path, tokens=tokens)
    monkeypatch.setattr(gguf_fields, "MAX_ITEMS", 1000)
    monkeypatch.setattr(gguf_fields, "MAX_HEADER_BYTES", 100)
    monkeypatch.setattr(gguf_fields, "_PIECE_BYTES", 10)
    with pytest.raises(CheckpointError, match=r"brings the header to 1\d\d bytes \(limit 100\)"):
        read_gguf(path)


def test_every_prefix_of_a_good_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    raw = whole((key("a", 8, text("b")), key("c", 9, struct.pack("<IQ", 8, 1) + text("d"))), (tensor(),), bytes(32))
    for size in range(len(raw)):
        path.write_bytes(raw[:size])
        with pytest.raises(CheckpointError):
            read_gguf(path)
    path.write_bytes(raw)
    assert read_gguf(path).metadata == {"a": "b", "c": ["d"]}


def test_what_is_no_regular_file_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "missing", tmp_path / "pipe"):
        assert not is_gguf(path)
        with pytest.raises(CheckpointError, match="no regular file"):
            read_gguf(path)


def split(folder: Path, max_tensors: int = 1) -> list[Path]:
    """Write a file in parts and return them."""
    folder.mkdir(exist_ok=True)
    writer = gguf.GGUFWriter(folder / "m.gguf", "llama", split_max_tensors=max_tensors)
    writer.add_context_length(7)
    for i in range(3):
        writer.add_tensor(f"x{i}", np.full((2, 4), i, np.float32))
    finish(writer)
    return sorted(folder.glob("*.gguf"))


def test_all_parts_of_a_split_file_are_read(tmp_path: Path) -> None:
    parts = split(tmp_path)
    assert parts[0].name == "m-00001-of-00003.gguf"
    file = read_gguf(parts[0])
    assert file.metadata["llama.context_length"] == 7
    assert [file.tensors[f"x{i}"].path for i in range(3)] == parts


def test_parts_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    parts = split(tmp_path)
    with pytest.raises(CheckpointError, match=r"not the first of 3 parts; give m-00001-of-00003\.gguf"):
        read_gguf(parts[1])
    third = parts[2].read_bytes()
    parts[2].write_bytes(parts[1].read_bytes())
    with pytest.raises(CheckpointError, match="is not part 3 of 3"):
        read_gguf(parts[0])
    parts[2].unlink()
    with pytest.raises(CheckpointError, match=r"m-00003-of-00003\.gguf is missing; fetch all 3 parts"):
        read_gguf(parts[0])
    parts[2].write_bytes(third)
    alone = parts[0].rename(tmp_path / "blob.gguf")
    with pytest.raises(CheckpointError, match=r"part of a model in 3 files.*gguf-split --merge"):
        read_gguf(alone)


def test_parts_with_other_tensors_than_claimed_are_refused(tmp_path: Path) -> None:
    parts = split(tmp_path)
    raw = parts[0].read_bytes()
    parts[0].write_bytes(raw.replace(b"x0", b"x2"))
    with pytest.raises(CheckpointError, match="tensor 'x2' is in"):
        read_gguf(parts[0])
    at = raw.index(b"split.tensors.count") + len("split.tensors.count") + 4
    parts[0].write_bytes(raw[:at] + struct.pack("<i", 4) + raw[at + 4 :])
    with pytest.raises(CheckpointError, match=r"split\.tensors\.count is 4, the parts have 3"):
        read_gguf(parts[0])


def test_headers_and_configs_are_read_without_torch() -> None:
    """The HTTP process reads them too."""
    code = "import sys, ollampi.mpiruntime.gguf_config; sys.exit(bool({'torch', 'gguf', 'numpy'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)})
    assert done.returncode == 0
