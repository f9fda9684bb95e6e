"""Advisory 8: GGUF keys with impossible values (CVE-2024-12055, -8063, CVE-2025-0317, -0312)."""

from __future__ import annotations

import struct

import pytest

KEYS = ["block_count", "attention.head_count", "attention.head_count_kv", "embedding_length", "context_length"]
VALUES = {
    "0": struct.pack("<II", 4, 0),
    "1": struct.pack("<II", 4, 1),
    "-1": struct.pack("<Ii", 5, -1),
    "2^32-1": struct.pack("<II", 4, 2**32 - 1),
    "text": struct.pack("<IQ", 8, 1) + b"x",
    "array": struct.pack("<IIQI", 9, 4, 1, 1),
    "missing": b"",
}


def changed(gguf: bytes, key: str, value: bytes) -> bytes:
    """Return the file with another value for a key, in the place of the uint32 that is there; b"" renames the key."""
    name = key.encode()
    start = gguf.index(struct.pack("<Q", len(name)) + name)
    behind = start + 8 + len(name)
    assert gguf[behind : behind + 4] == struct.pack("<I", 4), "a uint32"
    if not value:
        return gguf[: start + 8] + b"x" * len(name) + gguf[behind:]
    # the file keeps its length up to the tensors: what is longer or shorter moves them, which is refused too
    return gguf[:behind] + value + gguf[behind + 8 :]


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("value", VALUES)
def test_values(attacked, gguf, key, value):
    data = changed(gguf, f"llama.{key}", VALUES[value])
    status, answer = attacked.post("/api/create", model="odd", files={"m.gguf": attacked.upload(data)})
    assert status in (200, 400), answer
    if status == 200:  # a number that only makes another model: one block less, a shorter context
        assert (key, value) in {
            ("block_count", "1"),
            ("context_length", "1"),
            ("context_length", "2^32-1"),
            ("context_length", "missing"),
        }, (key, value)
        assert attacked.server.request("DELETE", "/api/delete", {"model": "odd"})[0] == 200


@pytest.mark.parametrize("alignment", [0, 3, 2**31])
def test_alignments(attacked, alignment):
    key = b"general.alignment"
    data = struct.pack("<4sIQQQ", b"GGUF", 3, 0, 1, len(key)) + key + struct.pack("<II", 4, alignment) + bytes(64)
    assert attacked.post("/api/create", model="odd", files={"m.gguf": attacked.upload(data)})[0] == 400
