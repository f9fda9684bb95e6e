"""Advisory 14: shard names that are paths in a safetensors index (CVE-2026-7020)."""

from __future__ import annotations

import json

import pytest
from support.servers import DEMO

NAMES = [
    "../model.safetensors",
    "/etc/passwd",
    "%2e%2e/model.safetensors",
    "a/../../x.safetensors",
    "~/x",
    "",
    "x\0",
    5,
    None,
]


@pytest.mark.parametrize("name", NAMES)
def test_index(attacked, name):
    texts = ("config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json")
    files = {text: attacked.upload((DEMO / text).read_bytes()) for text in texts}
    index = json.dumps({"weight_map": {"model.norm.weight": name}}).encode()
    files["model.safetensors.index.json"] = attacked.upload(index)
    files["model-00001-of-00001.safetensors"] = attacked.upload((DEMO / "model.safetensors").read_bytes())
    status, answer = attacked.post("/api/create", model="indexed", files=files)
    assert status == 400, answer
    assert "indexed" not in str(attacked.server.request("GET", "/api/tags")[1])
