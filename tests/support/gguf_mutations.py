"""Damage GGUF files with knowledge of their structure: counts, types, lengths, shapes, offsets and values."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import gguf

EXTREMES = [0, 1, 2, 3, 7, 31, 33, 255, 256, 2**15, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**48, 2**63, 2**64 - 1]
_FLOATS = [0.0, -0.0, -1.0, 1e-45, 1e30, 3.4e38, float("nan"), float("inf"), float("-inf")]
_FORMATS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "B", 10: "Q", 11: "q", 12: "d"}


@dataclass
class Key:
    """A key with its type and the bytes of its value."""

    name: bytes
    kind: int
    value: bytes


@dataclass
class Tensor:
    """What the header says of a tensor; `dimensions` is the number it claims."""

    name: bytes
    dimensions: int
    shape: list[int]
    kind: int
    offset: int


@dataclass
class Parts:
    """A GGUF file taken apart."""

    version: int
    num_tensors: int
    num_keys: int
    keys: list[Key]
    tensors: list[Tensor]
    alignment: int
    data: bytes

    def joined(self) -> bytes:
        """Return the file."""
        raw = struct.pack("<4sIQQ", b"GGUF", self.version, self.num_tensors % 2**64, self.num_keys % 2**64)
        for key in self.keys:
            raw += struct.pack("<Q", len(key.name)) + key.name + struct.pack("<I", key.kind) + key.value
        for each in self.tensors:
            raw += struct.pack("<Q", len(each.name)) + each.name + struct.pack("<I", each.dimensions)
            raw += struct.pack(f"<{len(each.shape)}QIQ", *each.shape, each.kind, each.offset % 2**64)
        return raw + bytes(-len(raw) % self.alignment) + self.data


def take_apart(path: Path) -> Parts:
    """Return the parts of a good file, as the gguf package finds them."""
    reader = gguf.GGUFReader(path)
    keys = [
        Key(field.name.encode(), int(field.parts[2][0]), b"".join(part.tobytes() for part in field.parts[3:]))
        for field in reader.fields.values()
        if not field.name.startswith("GGUF.")
    ]
    tensors = [
        Tensor(each.name.encode(), len(each.shape), each.shape.tolist(), int(kind[0]), int(offset[0]))
        for each in reader.tensors
        for kind, offset in [each.field.parts[4:6]]
    ]
    data = path.read_bytes()[reader.data_offset :]
    return Parts(3, len(tensors), len(keys), keys, tensors, reader.alignment, data)


def mutated(good: Parts, rng: random.Random) -> bytes:
    """Return the file with one to three damages."""
    parts = deepcopy(good)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        rng.choice(_DAMAGES)(parts, rng)
    raw = parts.joined()
    return rng.choice(_CUTS)(raw, rng) if rng.random() < 0.25 else raw


def _number(rng: random.Random) -> int:
    return rng.choice(EXTREMES) if rng.random() < 0.8 else rng.getrandbits(rng.choice((3, 8, 16, 33, 64)))


def _counts(parts: Parts, rng: random.Random) -> None:
    if rng.random() < 0.5:
        parts.num_tensors = rng.choice((_number(rng), parts.num_tensors + rng.choice((-1, 1))))
    else:
        parts.num_keys = rng.choice((_number(rng), parts.num_keys + rng.choice((-1, 1))))


def _version(parts: Parts, rng: random.Random) -> None:
    parts.version = rng.choice((0, 1, 2, 2, 4, 3 << 24, 2**32 - 1))


def _key_kind(parts: Parts, rng: random.Random) -> None:
    rng.choice(parts.keys).kind = rng.choice((*range(14), 2**32 - 1))


def _key_value(parts: Parts, rng: random.Random) -> None:
    """Give a key another value of a type that fits the value."""
    key = rng.choice(parts.keys)
    key.kind = rng.choice((key.kind if key.kind in _FORMATS else 4, *_FORMATS))
    letter = _FORMATS[key.kind]
    if letter in "fd":
        key.value = struct.pack(f"<{letter}", rng.choice(_FLOATS))
    else:
        size = struct.calcsize(letter)
        key.value = (_number(rng) % 2 ** (8 * size)).to_bytes(size, "little")


def _key_text(parts: Parts, rng: random.Random) -> None:
    """Give a key a string, or break the length of the one that it has."""
    key = rng.choice(parts.keys)
    if key.kind == 8 and rng.random() < 0.5:
        key.value = struct.pack("<Q", _number(rng)) + key.value[8:]
    else:
        text = rng.choice((b"", b"llama", b"gemma3", b"bert", b"\xff\xfe", b"{}", b"x" * 70_000, b"\0"))
        key.kind, key.value = 8, struct.pack("<Q", len(text)) + text


def _key_array(parts: Parts, rng: random.Random) -> None:
    """Give a key an array, or break the type or the length of the one that it has."""
    key = rng.choice(parts.keys)
    if key.kind == 9 and rng.random() < 0.7:
        kind, count = struct.unpack_from("<IQ", key.value)
        head = (rng.choice((*range(14), 2**32 - 1)), count) if rng.random() < 0.5 else (kind, _number(rng))
        key.value = struct.pack("<IQ", *head) + key.value[12:]
    elif rng.random() < 0.3:
        key.kind, key.value = 9, struct.pack("<IQ", 9, 1) * rng.choice((2, 5, 5000)) + struct.pack("<IQ", 0, 0)
    else:
        count = rng.choice((0, 1, 2, 1000))
        letter = _FORMATS.get(key.kind, "I")
        kind = key.kind if key.kind in _FORMATS else 4
        value = key.value if key.kind in _FORMATS else bytes(struct.calcsize(letter))
        key.kind, key.value = 9, struct.pack("<IQ", kind, count) + value * count


def _key_names(parts: Parts, rng: random.Random) -> None:
    """Rename a key, or exchange two values."""
    one, other = rng.choice(parts.keys), rng.choice(parts.keys)
    if rng.random() < 0.4:
        one.name = rng.choice((other.name, b"", b"\xff", one.name + b"x", b"k" * 70_000))
    else:
        one.kind, one.value, other.kind, other.value = other.kind, other.value, one.kind, one.value


def _tensor_shape(parts: Parts, rng: random.Random) -> None:
    tensor = rng.choice(parts.tensors)
    if rng.random() < 0.3:
        tensor.dimensions = rng.choice((0, 1, 2, 3, 4, 5, 2**32 - 1))
    elif rng.random() < 0.5:
        tensor.shape[rng.randrange(len(tensor.shape))] = _number(rng)
    else:
        tensor.shape = [rng.choice((1, 2, 32, 256, 2**32)) for _ in range(rng.randint(1, 4))]
        tensor.dimensions = len(tensor.shape)


def _tensor_kind(parts: Parts, rng: random.Random) -> None:
    rng.choice(parts.tensors).kind = rng.choice((*range(45), 2**32 - 1))


def _tensor_offset(parts: Parts, rng: random.Random) -> None:
    tensor = rng.choice(parts.tensors)
    tensor.offset = rng.choice((_number(rng), tensor.offset + rng.choice((-32, -1, 1, 32)), len(parts.data)))


def _tensor_name(parts: Parts, rng: random.Random) -> None:
    one, other = rng.choice(parts.tensors), rng.choice(parts.tensors)
    odd = (b"", b"\xff", b"{}", b"blk.0.{}_exps.weight", b"blk.99999999999.attn_q.weight", b"n" * 300, b"{}{.weight")
    one.name, other.name = rng.choice(((other.name, one.name), (other.name, other.name), (rng.choice(odd), other.name)))


def _drop(parts: Parts, rng: random.Random) -> None:
    """Leave out a key or a tensor, counted or not."""
    if rng.random() < 0.5 and len(parts.keys) > 1:
        parts.keys.pop(rng.randrange(len(parts.keys)))
        parts.num_keys -= rng.random() < 0.9
    elif len(parts.tensors) > 1:
        parts.tensors.pop(rng.randrange(len(parts.tensors)))
        parts.num_tensors -= rng.random() < 0.9


def _double(parts: Parts, rng: random.Random) -> None:
    """Bring in a key or a tensor a second time."""
    if rng.random() < 0.5:
        parts.keys.insert(rng.randrange(len(parts.keys)), deepcopy(rng.choice(parts.keys)))
        parts.num_keys += 1
    else:
        parts.tensors.append(deepcopy(rng.choice(parts.tensors)))
        parts.num_tensors += 1


def _alignment(parts: Parts, rng: random.Random) -> None:
    """Add an alignment, or change that of the bytes without saying so."""
    if rng.random() < 0.7:
        parts.keys.append(Key(b"general.alignment", 4, struct.pack("<I", _number(rng) % 2**32)))
        parts.num_keys += 1
    else:
        parts.alignment = rng.choice((1, 8, 64, 4096))


def _data(parts: Parts, rng: random.Random) -> None:
    """Overwrite some of the tensors' bytes, or take the last ones away."""
    at = rng.randrange(len(parts.data))
    if rng.random() < 0.5:
        noise = rng.choice((b"\xff", b"\0", b"\x7f", b"\x80")) * rng.choice((1, 64, 4096))
        parts.data = parts.data[:at] + noise + parts.data[at + len(noise) :]
    else:
        parts.data = parts.data[:at]


def _split(parts: Parts, rng: random.Random) -> None:
    """Say that the file is one of several."""
    for name in (b"split.no", b"split.count", b"split.tensors.count"):
        parts.keys.append(Key(name, 4, struct.pack("<I", _number(rng) % 2**32)))
        parts.num_keys += 1


_DAMAGES: list[Callable[[Parts, random.Random], None]] = [
    _counts, _version, _key_kind, _key_value, _key_value, _key_value, _key_text, _key_array, _key_array, _key_names,
    _tensor_shape, _tensor_kind, _tensor_offset, _tensor_name, _drop, _double, _alignment, _data, _split,
]  # fmt: skip


def _truncated(raw: bytes, rng: random.Random) -> bytes:
    return raw[: rng.randrange(min(len(raw), rng.choice((64, 4096, len(raw)))))]


def _flipped(raw: bytes, rng: random.Random) -> bytes:
    damaged = bytearray(raw)
    for _ in range(rng.choice((1, 4, 32))):
        damaged[rng.randrange(min(len(raw), rng.choice((64, 4096, len(raw)))))] = rng.getrandbits(8)
    return bytes(damaged)


def _spliced(raw: bytes, rng: random.Random) -> bytes:
    """Copy a run of bytes to another place, over what is there or between."""
    size, begin, at = rng.choice((1, 8, 64, 1024)), rng.randrange(len(raw)), rng.randrange(len(raw))
    return raw[:at] + raw[begin : begin + size] + raw[at + (size if rng.random() < 0.5 else 0) :]


_CUTS: list[Callable[[bytes, random.Random], bytes]] = [_truncated, _flipped, _spliced]
