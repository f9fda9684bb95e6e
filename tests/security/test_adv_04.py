"""Advisory 4: a GGUF file of 4 bytes (CVE-2024-39720): every beginning of a good one is refused."""

from __future__ import annotations

import random

import pytest


@pytest.mark.parametrize("part", range(4))
def test_beginnings_of_a_file(attacked, gguf, part):
    rng = random.Random(part)
    lengths = [*range(part, 65, 4), *(rng.randrange(65, 100_000) for _ in range(10)), rng.randrange(len(gguf))]
    for length in lengths:
        status, answer = attacked.post("/api/create", model="short", files={"m.gguf": attacked.upload(gguf[:length])})
        assert status == 400, (length, answer)
    assert "short" not in str(attacked.server.request("GET", "/api/tags")[1])
