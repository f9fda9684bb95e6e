"""Advisory 16: a bad blob that is kept for ever while `pull` says success (ollama 17520, 941, 8105)."""

from __future__ import annotations

import pytest

DAMAGE = {
    "zeroed": lambda data: bytes(len(data)),
    "flipped": lambda data: data[:1000] + bytes([data[1000] ^ 1]) + data[1001:],
    "truncated": lambda data: data[:-10],
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_pull_repairs(attacked, registry, gguf, kind):
    (digest,) = registry.publish("library/kept:latest", gguf)
    name = f"{registry.host}/library/kept"
    assert attacked.pull(name)[-1] == {"status": "success"}
    path = attacked.store / "blobs" / digest.replace(":", "-")
    path.write_bytes(DAMAGE[kind](gguf))
    if kind == "truncated":
        status, answer = attacked.post("/api/generate", model=name, prompt="x")
        assert status == 500
        assert digest in answer["error"]
        assert str(len(gguf)) in answer["error"]
    assert attacked.pull(name)[-1] == {"status": "success"}
    assert path.read_bytes() == gguf
    assert attacked.post("/api/generate", model=name, prompt="x", options={"num_predict": 1})[0] == 200
    assert attacked.post("/api/generate", model=name, keep_alive=0)[0] == 200
