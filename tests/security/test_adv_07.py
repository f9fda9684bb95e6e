"""Advisory 7: counts in a GGUF header that make the reader allocate without bounds (CVE-2025-0315)."""

from __future__ import annotations

import struct

import pytest

HUGE = [2**31, 2**40, 2**63 - 1, 2**63, 2**64 - 1]


@pytest.mark.parametrize("count", HUGE)
def test_counts(attacked, count):
    key = struct.pack("<Q", 3) + b"a.b"
    headers = {
        "tensors": struct.pack("<4sIQQ", b"GGUF", 3, count, 0),
        "keys": struct.pack("<4sIQQ", b"GGUF", 3, 0, count),
        "both": struct.pack("<4sIQQ", b"GGUF", 3, count, count),
        "array": struct.pack("<4sIQQ", b"GGUF", 3, 0, 1) + key + struct.pack("<IIQ", 9, 4, count),
        "array of arrays": struct.pack("<4sIQQ", b"GGUF", 3, 0, 1) + key + struct.pack("<IIQIQ", 9, 9, 1, 9, count),
        "string": struct.pack("<4sIQQ", b"GGUF", 3, 0, 1) + key + struct.pack("<IQ", 8, count),
        "name": struct.pack("<4sIQQ", b"GGUF", 3, 0, 1) + struct.pack("<Q", count),
    }
    for name, header in headers.items():
        status, answer = attacked.post(
            "/api/create", model="huge", files={"m.gguf": attacked.upload(header + bytes(64))}
        )
        assert status == 400, (name, answer)
