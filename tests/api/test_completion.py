"""Pin the answers of /api/generate and /api/chat: framing, key order, numbers, and what the engine is asked."""

from __future__ import annotations

import json
import re

import pytest

from ollampi.api.engine_client import Done, EngineError, Tokens
from ollampi.mpiruntime.request import Usage

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


def test_line_ends_of_unicode_end_no_line(client, engine):
    text = "a\x85b\u2028c\u2029d\x0be\x1cf 🙂 ü"
    engine.says(text)
    for route, part in (("generate", "response"), ("chat", "message")):
        body = {"model": "chatty", "prompt": "hi", "messages": [{"role": "user", "content": "hi"}]}
        response = client.post(f"/api/{route}", json=body)
        pieces = [json.loads(line)[part] for line in response.text.splitlines()]  # as httpx cuts, and so ollama-python
        assert "".join(p["content"] if part == "message" else p for p in pieces) == text


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
    assert (engine.streams[0].cancelled, engine.streams[0].reason) == (1, "stop")
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


def test_harmless_fields(client, engine):
    message = {"role": "USER", "content": "x", "images": []}
    body = {"model": "demo", "messages": [message], "tools": [], "think": False, "format": "", "unknown": 1}
    body |= {"options": {"mirostat": 1, "tfs_z": None, "temperature": None, "evil\r\nname": 1}, "stream": None}
    response = client.post("/api/chat", json=body)
    lines(response)
    assert response.headers["Warning"] == '299 ollampi "ignored options: mirostat"'
    assert client.post("/api/generate", json={"model": "demo", "prompt": "x", "images": []}).status_code == 200


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
    assert engine.streams[0].closed


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


@pytest.mark.parametrize(("keep", "expected"), [(3, 3), (10**6, 30), (-1, 1)])
def test_a_shift_always_has_something_to_drop(client, engine, keep, expected):
    lines(
        client.post(
            "/api/generate", json={"model": "demo", "prompt": "x", "options": {"num_keep": keep, "num_ctx": 32}}
        )
    )
    assert engine.requests[0].keep_tokens == expected
