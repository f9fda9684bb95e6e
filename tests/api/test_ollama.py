"""Pin the answers of Ollama's routes: shapes, key order, error texts."""

from __future__ import annotations

import json
import re
import shutil
from datetime import datetime
from pathlib import Path

import pytest

from ollampi.api.engine_client import Done, EngineError, Tokens
from ollampi.mpiruntime.request import LoadedModel, Usage

METRICS = [
    "total_duration",
    "load_duration",
    "prompt_eval_count",
    "prompt_eval_duration",
    "eval_count",
    "eval_duration",
]
UTC_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z")


def lines(response):
    """Return the objects of an NDJSON answer, checking its framing."""
    assert response.status_code == 200, response.text
    assert response.headers["Content-Type"] == "application/x-ndjson"
    assert response.text.endswith("\n")
    assert "\n\n" not in response.text
    return [json.loads(line) for line in response.text[:-1].split("\n")]


def masked(value):
    """Return an answer with times replaced, for comparing with a golden one."""
    value = dict(value)
    assert UTC_TIME.fullmatch(value["created_at"])
    value["created_at"] = "T"
    if "total_duration" in value:
        assert value["total_duration"] > 0
        value["total_duration"] = 1
    return value


GOLDEN_METRICS = dict(zip(METRICS, [1, 1_000_000, 9, 50_000_000, 2, 150_000_000], strict=True))


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
        "thinker:latest": ["completion", "tools", "thinking"],
    }


def test_ps(client, engine, models_folder):
    assert client.get("/api/ps").text == '{"models":[]}'
    engine.models = [
        LoadedModel("chatty:latest", str(models_folder / "chatty"), 100, 0, 64, 1.5e9),
        LoadedModel("demo:latest", str(models_folder / "demo"), 200, 50, 32, None),
    ]
    models = client.get("/api/ps").json["models"]
    assert [m["name"] for m in models] == ["demo:latest", "chatty:latest"]
    keys = ["name", "model", "size", "digest", "details", "expires_at", "size_vram", "context_length"]
    assert list(models[0]) == keys
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


def test_show_errors_and_no_paths(client, models_folder):
    assert client.post("/api/show", json={}).json == {"error": "model is required"}
    response = client.post("/api/show", json={"model": "x"})
    assert (response.status_code, response.json) == (404, {"error": "model 'x' not found"})
    assert str(models_folder) not in client.post("/api/show", json={"model": "demo", "verbose": True}).text


def test_generate_stream(client, engine):
    parts = lines(client.post("/api/generate", json={"model": "demo", "prompt": "hi"}))
    assert "".join(p["response"] for p in parts) == "Hello, world"
    assert masked(parts[0]) == {"model": "demo", "created_at": "T", "response": parts[0]["response"], "done": False}
    assert list(parts[0]) == ["model", "created_at", "response", "done"]
    last = masked(parts[-1])
    assert list(last) == ["model", "created_at", "response", "done", "done_reason", "context", *METRICS]
    tokens = engine.requests[0].prompt + engine.tokenizer.encode("Hello, world").ids
    assert last == {
        "model": "demo",
        "created_at": "T",
        "response": "",
        "done": True,
        "done_reason": "stop",
        "context": tokens,
        **GOLDEN_METRICS,
    }


def test_generate_whole(client, engine):
    engine.says("Hello", reason="length")
    response = client.post("/api/generate", json={"model": "demo", "prompt": "hi", "stream": False, "raw": True})
    assert response.headers["Content-Type"] == "application/json; charset=utf-8"
    assert masked(response.json) == {
        "model": "demo",
        "created_at": "T",
        "response": "Hello",
        "done": True,
        "done_reason": "length",
        **GOLDEN_METRICS,
    }


def test_chat_stream(client):
    body = {
        "model": "chatty",
        "messages": [{"role": "user", "content": "hi"}],
        "options": {"num_predict": 2, "seed": 1},
    }
    parts = lines(client.post("/api/chat", json=body))
    assert list(parts[0]) == ["model", "created_at", "message", "done"]
    assert "".join(p["message"]["content"] for p in parts) == "Hello, world"
    last = masked(parts[-1])
    assert list(last) == ["model", "created_at", "message", "done", "done_reason", *METRICS]
    assert last["message"] == {"role": "assistant", "content": ""}


def test_zero_metrics_are_left_out(client, engine):
    engine.events = [Done("stop", Usage(prompt_tokens=3))]
    last = client.post("/api/generate", json={"model": "demo", "prompt": "x", "stream": False}).json
    assert [key for key in last if key in METRICS] == ["total_duration", "prompt_eval_count"]


@pytest.mark.parametrize(("route", "part"), [("generate", "response"), ("chat", "message")])
def test_logprobs(client, engine, route, part):
    engine.says("Hello", logprobs=True)
    body = {"model": "demo", "prompt": "x", "messages": [{"role": "user", "content": "x"}], "stream": False}
    answer = client.post(f"/api/{route}", json=body | {"logprobs": True, "top_logprobs": 2}).json
    keys = list(answer)
    assert (keys.index("logprobs") < keys.index("total_duration")) == (route == "chat")
    entries = answer["logprobs"]
    assert bytes(b for e in entries for b in e["bytes"]) == b"Hello"
    assert list(entries[0]) == ["token", "logprob", "bytes", "top_logprobs"]
    assert list(entries[0]["top_logprobs"][0]) == ["token", "logprob", "bytes"]
    assert engine.requests[0].sampling.logprobs
    assert engine.requests[0].sampling.top_logprobs == 2


def test_logprobs_come_with_their_chunk(client, engine):
    engine.says("Hello 🙂 there", logprobs=True)
    parts = lines(client.post("/api/generate", json={"model": "demo", "prompt": "x", "logprobs": True}))
    raw = b""
    for part in parts:
        raw += bytes(b for e in part.get("logprobs", []) for b in e["bytes"])
        said = "".join(p["response"] for p in parts[: parts.index(part) + 1])
        assert raw.decode(errors="ignore") == said


@pytest.mark.parametrize(
    ("route", "part"),
    [
        ("generate", '"response":""'),
        ("chat", '"message":{"role":"assistant","content":""}'),
    ],
)
def test_load_and_unload(client, engine, route, part):
    for keep_alive, reason, call in (
        (None, "load", ("load", "demo:latest", None, None)),
        ("10m", "load", ("load", "demo:latest", None, 600.0)),
        (-1, "load", ("load", "demo:latest", None, -1.0)),
        (0, "unload", ("unload", "demo:latest")),
        ("0s", "unload", ("unload", "demo:latest")),
    ):
        response = client.post(f"/api/{route}", json={"model": "demo", "keep_alive": keep_alive})
        assert response.headers["Content-Type"] == "application/json; charset=utf-8"
        golden = f'{{"model":"demo","created_at":"T",{part},"done":true,"done_reason":"{reason}"}}'
        assert UTC_TIME.sub("T", response.text) == golden
        assert engine.calls[-1] == call


def test_stop_string_across_tokens(client, engine):
    engine.says("The quick brown fox jumps")
    body = {"model": "demo", "prompt": "x", "options": {"stop": ["wn fo"]}}
    parts = lines(client.post("/api/generate", json=body))
    assert "".join(p["response"] for p in parts) == "The quick bro"
    assert parts[-1]["done_reason"] == "stop"
    assert engine.streams[0].cancelled
    assert parts[-1]["eval_count"] == len(parts[-1]["context"]) - len(engine.requests[0].prompt)


def test_debug_render_only(client, engine):
    body = {"model": "chatty", "messages": [{"role": "user", "content": "hi"}], "_debug_render_only": True}
    answer = masked(client.post("/api/chat", json=body).json)
    rendered = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert answer == {
        "model": "chatty",
        "created_at": "T",
        "message": {"role": "", "content": ""},
        "done": False,
        "_debug_info": {"rendered_template": rendered, "image_count": 0},
    }
    body = {"model": "chatty", "prompt": "hi", "system": "S", "_debug_render_only": True}
    debug = client.post("/api/generate", json=body).json["_debug_info"]
    assert debug["rendered_template"] == "<|im_start|>system\nS<|im_end|>\n" + rendered
    assert not engine.requests


FULL = "registry.ollama.ai/library/demo:latest"
RAW = "raw mode does not support template, system, or context"
FORMAT = "structured output (format) is not supported yet; leave format out"
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
    ({"format": "json"}, 501, FORMAT),
    ({"format": {"type": "object"}}, 501, FORMAT),
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
         'json: field "messages" must be of type array of objects, not array'),
        ({"model": "demo", "messages": [{"role": "user", "content": []}]}, 400,
         'json: field "messages[].content" must be of type string, not array'),
    ],
)  # fmt: skip
def test_chat_errors(client, body, status, text):
    response = client.post("/api/chat", json=body)
    assert (response.status_code, response.json) == (status, {"error": text})


def test_harmless_fields(client, engine):
    message = {"role": "USER", "content": "x", "images": []}
    body = {"model": "demo", "messages": [message], "tools": [], "think": False, "format": "", "unknown": 1}
    body |= {"options": {"mirostat": 1, "tfs_z": None, "temperature": None, "evil\r\nname": 1}, "stream": None}
    response = client.post("/api/chat", json=body)
    lines(response)
    assert response.headers["Warning"] == '299 ollampi "ignored options: mirostat"'
    assert client.post("/api/generate", json={"model": "demo", "prompt": "x", "images": []}).status_code == 200


@pytest.mark.parametrize("think", ["very", 1, [], {}])
def test_wrong_think(client, think):
    response = client.post("/api/generate", json={"model": "thinker", "prompt": "x", "think": think})
    assert response.status_code == 400
    assert "low" in response.json["error"]


def test_thinking_is_split(client, engine):
    engine.says("<think>\nhmm, <\n</think>\n\nThe dog")
    body = {"model": "thinker", "messages": [{"role": "user", "content": "x"}]}
    whole = client.post("/api/chat", json=body | {"stream": False}).json
    assert whole["message"] == {"role": "assistant", "content": "The dog", "thinking": "hmm, <\n"}
    parts = lines(client.post("/api/chat", json=body))
    assert "".join(p["message"].get("thinking", "") for p in parts) == "hmm, <\n"
    assert "".join(p["message"]["content"] for p in parts) == "The dog"
    plain = client.post("/api/chat", json=body | {"stream": False, "think": False}).json
    assert "thinking" not in plain["message"]


@pytest.mark.parametrize(
    ("error", "status", "text"),
    [
        (EngineError("busy", "x"), 503, "server busy, please try again.  maximum pending requests exceeded"),
        (EngineError("shutdown", "the server is stopping"), 503, "the server is stopping"),
        (EngineError("unavailable", "the engine went away"), 503, "the engine went away"),
        (EngineError("context", "too long"), 400, "too long"),
        (EngineError("request", "bad"), 400, "bad"),
        (EngineError("model", "cannot read /home/me/models/x.safetensors"), 500, "cannot read [hidden]"),
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


def test_failure_in_the_middle(client, engine):
    engine.events = [Tokens(engine.tokenizer.encode("The").ids), EngineError("shutdown", "the server is stopping")]
    parts = lines(client.post("/api/generate", json={"model": "demo", "prompt": "x"}))
    assert parts[-1] == {"error": "the server is stopping"}
    assert parts[0]["response"] == "The"


def test_closing_the_answer_cancels(client, engine):
    engine.events = [Tokens(engine.tokenizer.encode("The").ids)]
    response = client.post("/api/generate", json={"model": "demo", "prompt": "x"}, buffered=False)
    assert next(iter(response.response))
    response.close()
    assert engine.streams[0].cancelled == 1


def test_engine_request(client, engine):
    options = {"num_ctx": 32, "num_keep": 2, "temperature": 0, "top_k": 5, "seed": 7}
    body = {"model": "demo", "prompt": "hi", "keep_alive": "5m", "shift": False, "options": options}
    lines(client.post("/api/generate", json=body))
    request = engine.requests[0]
    assert (request.context, request.keep_tokens, request.shift, request.keep_alive_s) == (32, 2, False, 300.0)
    assert (request.sampling.temperature, request.sampling.top_k, request.sampling.seed) == (0.0, 5, 7)
    assert request.max_tokens == 320
    assert request.stop_tokens == [engine.tokenizer.token_to_id("<|end|>")]
    assert request.prompt == engine.tokenizer.encode("hi").ids


def test_context_is_capped_at_the_model(client, engine):
    lines(client.post("/api/generate", json={"model": "demo", "prompt": "hi", "options": {"num_ctx": 10**6}}))
    assert engine.requests[0].context == 64


def test_context_goes_before_the_prompt(client, engine):
    lines(client.post("/api/generate", json={"model": "demo", "prompt": "hi", "context": [5, 6]}))
    assert engine.requests[0].prompt == [5, 6, *engine.tokenizer.encode("hi").ids]
    response = client.post("/api/generate", json={"model": "demo", "prompt": "hi", "context": [10**6]})
    assert response.status_code == 400


@pytest.mark.parametrize("route", ["generate", "chat"])
def test_too_long_prompt(client, engine, route):
    text = "dog " * 200
    body = {"model": "demo", "prompt": text, "messages": [{"role": "user", "content": text}]}
    lines(client.post(f"/api/{route}", json=body))
    assert len(engine.requests[0].prompt) == 63
    for field in ("shift", "truncate"):
        response = client.post(f"/api/{route}", json=body | {field: False})
        assert response.status_code == 400
        assert response.json["error"].startswith("the prompt is longer than the context length currently available")


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


@pytest.mark.parametrize(("keep", "expected"), [(3, 3), (10**6, 30), (-1, 1)])
def test_a_shift_always_has_something_to_drop(client, engine, keep, expected):
    lines(
        client.post(
            "/api/generate", json={"model": "demo", "prompt": "x", "options": {"num_keep": keep, "num_ctx": 32}}
        )
    )
    assert engine.requests[0].keep_tokens == expected
