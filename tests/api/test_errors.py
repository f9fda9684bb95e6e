"""Check that error texts name no path, address or socket, whatever the folders are called."""

from __future__ import annotations

import time

import pytest

from ollampi.api.engine_client import EngineError
from ollampi.api.errors import MAX_MESSAGE_CHARS, answer_for, public
from ollampi.mpiruntime.errors import CheckpointError


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("cannot read /home/me/models/x.safetensors", "cannot read x.safetensors"),
        ("/data/My Models/a b/config.json: width is 3; give 4", "config.json: width is 3; give 4"),
        ("/data/My Models/a b/config.json cannot be read as JSON", "config.json cannot be read as JSON"),
        ("/data/a b/x y.safetensors: tensor 'a/b' is odd", "x y.safetensors: tensor 'a/b' is odd"),
        ("/d/model.safetensors.index.json names 'x'", "model.safetensors.index.json names 'x'"),
        ("no *.safetensors in /data/My Models/Llama 8b; x.bin is one", "no *.safetensors in [hidden]; x.bin is one"),
        ("tensor 'a' is in b.safetensors and in c.safetensors of /data/My Models/x (old)",
         "tensor 'a' is in b.safetensors and in c.safetensors of [hidden]"),
        ("[Errno 2] No such file: '/data/My Models/config.json'", "[Errno 2] No such file: 'config.json'"),
        ("/m/a b/x-00002-of-00002.gguf is missing; fetch it", "x-00002-of-00002.gguf is missing; fetch it"),
        ("tensor 'a' is in /m/x-1.gguf and in x-2.gguf", "tensor 'a' is in x-1.gguf and in x-2.gguf"),
        ("at 0x7fffdeadbeef", "at [hidden]"),
        ("no answer from unix:@ollampi-1-ab", "no answer from [hidden]"),
        ("roles must be user/assistant/user; 1/2 of a / b", "roles must be user/assistant/user; 1/2 of a / b"),
    ],
)  # fmt: skip
def test_public(message, shown):
    assert public(message) == shown
    assert answer_for(EngineError("model", message)) == (500, shown)
    assert answer_for(CheckpointError(message)) == (500, shown)


@pytest.mark.parametrize("unit", ["/", "/a", "/a ", "/a.json ", "a: /", "x"])
def test_long_messages_are_shortened_quickly(unit):
    started = time.perf_counter()
    assert len(public(unit * 1_000_000)) <= MAX_MESSAGE_CHARS + 8 * 1000
    assert time.perf_counter() - started < 10
