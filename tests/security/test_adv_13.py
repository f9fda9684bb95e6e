"""Advisory 13: "Bleeding Llama" (CVE-2026-7482): tensors beyond the end of a file, memory in what is written."""

from __future__ import annotations

import json
import struct

import pytest
from support.servers import DEMO

CANARY = b"CANARY-0123456789-CANARY"


@pytest.mark.parametrize("missing", [1, 32, 1000, 100_000])
def test_gguf_files_that_end_early(attacked, gguf, missing):
    for level in ("", "q8_0", "q4_K_M"):
        digest = attacked.upload(gguf[:-missing])
        status, answer = attacked.post("/api/create", model="short", files={"m.gguf": digest}, quantize=level)
        assert status == 400, answer


@pytest.mark.parametrize("beyond", [1, 4096, 2**40])
def test_safetensors_beyond_the_end(attacked, beyond):
    header = json.dumps({"x": {"dtype": "F32", "shape": [4 + beyond], "data_offsets": [0, 16 + 4 * beyond]}}).encode()
    weights = attacked.upload(struct.pack("<Q", len(header)) + header + bytes(16))
    names = ("config.json", "tokenizer.json", "tokenizer_config.json")
    files = {name: attacked.upload((DEMO / name).read_bytes()) for name in names}
    status, answer = attacked.post("/api/create", model="short", files={**files, "model.safetensors": weights})
    assert status == 400, answer


def test_nothing_of_the_memory_is_written(attacked, gguf):
    for _ in range(50):  # texts that lie about in the memory of the process
        attacked.post("/api/show", model=(CANARY * 100).decode())
        attacked.post("/api/generate", prompt=(CANARY * 20_000).decode(), options={"num_predict": 1})
    status, answer = attacked.post(
        "/api/create", model="quantised", files={"m.gguf": attacked.upload(gguf)}, quantize="q8_0"
    )
    assert status == 200, answer
    for path in (attacked.store / "blobs").iterdir():
        assert CANARY not in path.read_bytes()
    assert attacked.server.request("DELETE", "/api/delete", {"model": "quantised"})[0] == 200
