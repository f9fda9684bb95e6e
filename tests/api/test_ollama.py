"""Pin the routes about models, and the text of every error."""

from __future__ import annotations

import re
import shutil
from datetime import datetime
from pathlib import Path

import pytest

from ollampi.api.engine_client import EngineError
from ollampi.mpiruntime.request import LoadedModel


def test_alive(client):
    for method in ("get", "head"):
        response = getattr(client, method)("/")
        assert (response.status_code, response.content_type) == (200, "text/plain; charset=utf-8")
        assert response.text == ("Ollama is running" if method == "get" else "")


def test_version(client):
    response = client.get("/api/version")
    assert response.text == '{"version":"0.33.0"}'
    assert response.headers["Content-Type"] == "application/json; charset=utf-8"
    assert client.head("/api/version").status_code == client.head("/api/tags").status_code == 200


def test_unknown_path_and_method(client):
    response = client.get("/api/nope")
    assert (response.status_code, response.text) == (404, "404 page not found")
    assert response.content_type.startswith("text/plain")
    response = client.get("/api/generate")
    assert (response.status_code, response.text) == (405, "405 method not allowed")
    assert response.content_type.startswith("text/plain")


def test_tags(client):
    models = client.get("/api/tags").json["models"]
    assert sorted(m["name"] for m in models) == ["chatty:latest", "demo:latest", "thinker:latest"]
    demo = next(m for m in models if m["name"] == "demo:latest")
    assert list(demo) == ["name", "model", "modified_at", "size", "digest", "details", "capabilities"]
    assert demo["model"] == demo["name"]
    assert re.fullmatch("[0-9a-f]{64}", demo["digest"])
    assert datetime.fromisoformat(demo["modified_at"]).tzinfo is not None
    assert demo["details"] == {
        "parent_model": "",
        "format": "safetensors",
        "family": "llama",
        "families": ["llama"],
        "parameter_size": "3.2K",
        "quantization_level": "F32",
        "context_length": 64,
        "embedding_length": 8,
    }
    capabilities = {m["name"]: m["capabilities"] for m in models}
    assert capabilities == {
        "demo:latest": ["completion"],
        "chatty:latest": ["completion"],
        "thinker:latest": ["completion", "thinking", "tools"],
    }


def test_ps(client, engine, models_folder):
    assert client.get("/api/ps").text == '{"models":[]}'
    engine.models = [
        LoadedModel("chatty:latest", str(models_folder / "chatty"), 100, 0, 64, 1.5e9),
        LoadedModel("demo:latest", str(models_folder / "demo"), 200, 50, 32, None),
        LoadedModel("thinker:latest", str(models_folder / "thinker"), 100, 0, 64, 1.4e9, "APPROXIMATE: one sum"),
    ]
    models = client.get("/api/ps").json["models"]
    assert [m["name"] for m in models] == ["demo:latest", "chatty:latest", "thinker:latest"]
    keys = ["name", "model", "size", "digest", "details", "expires_at", "size_vram", "context_length"]
    assert [list(entry) for entry in models] == [keys, keys, [*keys, "note"]]
    assert models[2]["note"] == "APPROXIMATE: one sum"
    assert (models[0]["size"], models[0]["size_vram"], models[0]["context_length"]) == (200, 50, 32)
    assert datetime.fromisoformat(models[0]["expires_at"]).year > 2200
    assert datetime.fromisoformat(models[1]["expires_at"]).timestamp() == 1.5e9


def test_show(client):
    response = client.post("/api/show", json={"name": "Demo"})
    body = response.json
    assert list(body) == [
        "modelfile",
        "parameters",
        "template",
        "details",
        "model_info",
        "capabilities",
        "modified_at",
    ]
    info = body["model_info"]
    assert info["general.architecture"] == "llama"
    assert info["general.parameter_count"] == 3208
    assert info["llama.context_length"] == 64
    assert info["llama.rope.dimension_count"] == 4
    assert info["tokenizer.ggml.tokens"] is info["tokenizer.ggml.merges"] is None
    assert body["template"] == "{{ .Prompt }}"
    for line in body["parameters"].split("\n"):
        assert re.fullmatch(r"^(\S+)\s+((?:\".*\")|\S+)$", line)
    assert body["parameters"] == 'stop                           "<|end|>"'


def test_show_verbose(client):
    body = client.post("/api/show", json={"model": "demo", "verbose": True, "system": "Be brief."}).json
    assert body["tensors"][0] == {"name": "embed", "type": "F32", "shape": [400, 8]}
    assert len(body["model_info"]["tokenizer.ggml.tokens"]) == len(body["model_info"]["tokenizer.ggml.token_type"])
    assert body["model_info"]["tokenizer.ggml.merges"]
    assert body["system"] == "Be brief."
    assert 'SYSTEM """Be brief."""' in body["modelfile"]
    assert 'PARAMETER stop "<|end|>"' in body["modelfile"]


def test_show_errors_and_no_paths(client, models_folder):
    assert client.post("/api/show", json={}).json == {"error": "model is required"}
    response = client.post("/api/show", json={"model": "x"})
    assert (response.status_code, response.json) == (404, {"error": "model 'x' not found"})
    assert str(models_folder) not in client.post("/api/show", json={"model": "demo", "verbose": True}).text


FULL = "registry.ollama.ai/library/demo:latest"


RAW = "raw mode does not support template, system, or context"


GENERATE_ERRORS = [
    ({"model": "nope"}, 404, "model 'nope' not found"),
    ({"model": ""}, 404, "model '' not found"),
    ({"model": "../../etc/passwd"}, 404, "model '../../etc/passwd' not found"),
    ({"suffix": "y"}, 400, f"{FULL} does not support insert"),
    ({"images": ["aa"]}, 400, f"{FULL} does not support vision"),
    ({"top_logprobs": 21}, 400, "top_logprobs must be between 0 and 20"),
    ({"top_logprobs": -1}, 400, "top_logprobs must be between 0 and 20"),
    ({"think": True}, 400, '"demo" does not support thinking'),
    ({"think": "high"}, 400, '"demo" does not support thinking'),
    ({"raw": True, "system": "s"}, 400, RAW),
    ({"raw": True, "template": "s"}, 400, RAW),
    ({"raw": True, "context": [1]}, 400, RAW),
    ({"options": {"num_predict": "a"}}, 500, 'option "num_predict" must be of type integer'),
    ({"options": {"stop": "a"}}, 500, 'option "stop" must be of type array'),
    ({"options": {"stop": [1]}}, 500, 'option "stop" must be of an array of strings'),
    ({"options": {"temperature": "a"}}, 500, 'option "temperature" must be of type float32'),
    ({"options": {"use_mmap": 1}}, 500, 'option "use_mmap" must be of type boolean'),
    ({"format": "xml"}, 500, 'invalid format: "xml"; expected "json" or a valid JSON Schema object'),
]  # fmt: skip


@pytest.mark.parametrize(("body", "status", "text"), GENERATE_ERRORS)
def test_generate_errors(client, engine, body, status, text):
    response = client.post("/api/generate", json={"model": "demo", "prompt": "x"} | body)
    assert (response.status_code, response.json) == (status, {"error": text})
    assert response.headers["Content-Type"] == "application/json; charset=utf-8"
    assert not engine.requests


@pytest.mark.parametrize(
    ("body", "status", "text"),
    [
        ({}, 400, "model is required"),
        ({"model": "nope"}, 404, "model 'nope' not found"),
        ({"model": "demo", "messages": [{"role": "user", "content": "x"}], "tools": [{"type": "function"}]}, 400,
         f"{FULL} does not support tools"),
        ({"model": "demo", "messages": [{"role": "user", "images": ["x"]}]}, 400,
         f"{FULL} does not support vision"),
        ({"model": "demo", "messages": ["x"]}, 400,
         'json: field "messages[0]" must be of type object, not string'),
        ({"model": "demo", "messages": [{"role": "user", "content": []}]}, 400,
         'json: field "messages[0].content" must be of type string, not array'),
    ],
)  # fmt: skip
def test_chat_errors(client, body, status, text):
    response = client.post("/api/chat", json=body)
    assert (response.status_code, response.json) == (status, {"error": text})


@pytest.mark.parametrize("think", ["very", 1, [], {}])
def test_wrong_think(client, think):
    response = client.post("/api/generate", json={"model": "thinker", "prompt": "x", "think": think})
    assert response.status_code == 400
    assert "low" in response.json["error"]


@pytest.mark.parametrize(
    ("error", "status", "text"),
    [
        (EngineError("busy", "x"), 503, "server busy, please try again.  maximum pending requests exceeded"),
        (EngineError("shutdown", "the server is stopping"), 503, "the server is stopping"),
        (EngineError("unavailable", "the engine went away"), 503, "the engine went away"),
        (EngineError("context", "too long"), 400, "too long"),
        (EngineError("request", "bad"), 400, "bad"),
        (EngineError("model", "cannot read /home/me/models/x.safetensors"), 500, "cannot read x.safetensors"),
        (EngineError("internal", "at 0x7fffdeadbeef"), 500, "at [hidden]"),
        (EngineError("new-code", "x"), 500, "x"),
        (RuntimeError("secret"), 500, "internal server error"),
    ],
)
def test_engine_failures(client, engine, error, status, text):
    for stage in ("send", "first event"):
        engine.refusal = error if stage == "send" else None
        engine.events = [] if stage == "send" else [error]
        if stage == "first event" and not isinstance(error, EngineError):
            continue
        for stream in (True, False):
            response = client.post("/api/generate", json={"model": "demo", "prompt": "x", "stream": stream})
            assert (response.status_code, response.json) == (status, {"error": text})
            assert ("Retry-After" in response.headers) == (status == 503)


def test_damaged_model_does_not_hide_others(make_client, make_model, tmp_path: Path):
    make_model(tmp_path / "good")
    for number, damage in enumerate((b"", b"\xff" * 8, b"\x02" + bytes(7) + b"[]", b"\xff" * 100)):
        (make_model(tmp_path / f"bad{number}") / "model.safetensors").write_bytes(damage)
    (make_model(tmp_path / "bad-config") / "config.json").write_text("{")
    client = make_client(tmp_path)
    assert [m["name"] for m in client.get("/api/tags").json["models"]] == ["good:latest"]
    response = client.post("/api/generate", json={"model": "bad0", "prompt": "x"})
    assert response.status_code == 500
    assert str(tmp_path) not in response.text


def test_models_appear_and_vanish_without_restart(make_client, make_model, tmp_path: Path):
    client = make_client(tmp_path)
    assert client.get("/api/tags").json == {"models": []}
    make_model(tmp_path / "New.Model")
    assert client.post("/api/show", json={"model": "library/new.model:LATEST"}).status_code == 200
    shutil.rmtree(tmp_path / "New.Model")
    assert client.get("/api/tags").json == {"models": []}
