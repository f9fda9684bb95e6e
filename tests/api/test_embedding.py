"""Pin /api/embed and /api/embeddings: shapes, texts, status codes, what the engine is asked, and hostile values."""

from __future__ import annotations

import json
import math
from array import array

import pytest

from ollampi.api.embedding import MAX_INPUTS
from ollampi.api.engine_client import Done, EngineError
from ollampi.mpiruntime.request import Usage

BUSY = "server busy, please try again.  maximum pending requests exceeded"
HOSTILE = [-1, -(2**31), 0, 2**31, 2**63, 10**400, 1.5, 1e308, "1", True, None, [], {}]


def embed(client, **body):
    return client.post("/api/embed", json={"model": "demo", "input": "Hello"} | body)


def embeddings(client, **body):
    return client.post("/api/embeddings", json={"model": "demo", "prompt": "Hello"} | body)


def test_embed_shape_and_order(client, engine):
    engine.embeds([3.0, 4.0], [0.0, -2.0])
    response = embed(client, input=["Hello", "world"])
    assert response.status_code == 200
    assert response.headers["Content-Type"] == "application/json; charset=utf-8"
    body = response.json
    assert list(body) == ["model", "embeddings", "total_duration", "load_duration", "prompt_eval_count"]
    assert body["model"] == "demo"
    assert body["embeddings"] == [[0.6, 0.8], [0, -1]]
    assert (body["load_duration"], body["prompt_eval_count"]) == (1_000_000, 7)
    assert body["total_duration"] > 0
    (request,) = engine.embed_requests
    assert [p.tolist() for p in request.prompts] == [engine.tokenizer.encode(t).ids for t in ("Hello", "world")]
    assert (request.model.name, request.pooling, request.context, request.keep_alive_s) == (
        "demo:latest",
        "last",
        None,
        None,
    )
    assert engine.streams[0].closed


def test_one_text_is_a_list_of_one_and_zero_durations_are_left_out(client, engine):
    engine.embeds([1e-20, 0.0])
    engine.events[-1] = Done("stop", Usage())
    body = embed(client).json
    assert list(body) == ["model", "embeddings", "total_duration"]
    assert body["embeddings"] == [[pytest.approx(1e-8), 0]]


def test_embeddings_are_raw(client, engine):
    engine.embeds([3.0, -4.5e-20, 2.5e30])
    response = embeddings(client)
    assert response.status_code == 200
    assert list(response.json) == ["embedding"]
    assert array("f", response.json["embedding"]) == array("f", [3.0, -4.5e-20, 2.5e30])


@pytest.mark.parametrize(
    ("dimensions", "kept"), [(0, 4), (-1, 4), (4, 4), (9, 4), (None, 4), (1, 1), (3, 3), (2**63, 4)]
)
def test_dimensions_cut_and_normalise_again(client, engine, dimensions, kept):
    values = [1.0, -2.0, 3.0, 1e19]
    engine.embeds(values, [0.0, 0.0, 0.0, 1.0])
    first, second = embed(client, input=["a", "b"], dimensions=dimensions).json["embeddings"]
    length = math.sqrt(sum(v * v for v in values[:kept]))
    assert first == pytest.approx([v / length for v in values[:kept]], rel=1e-6)
    assert second == ([0, 0, 0, 1] if kept == 4 else [0] * kept)  # zeros have no direction


@pytest.mark.parametrize("keep_alive", [None, 60, "5m", 0])
@pytest.mark.parametrize(("route", "empty"), [("embed", "input"), ("embeddings", "prompt")])
def test_empty_input_loads_the_model(client, engine, route, empty, keep_alive):
    answers = {"embed": {"model": "demo", "embeddings": []}, "embeddings": {"embedding": []}}
    for value in ("", None, *([[]] if route == "embed" else [])):
        engine.calls.clear()
        body = {"model": "demo", empty: value, "keep_alive": keep_alive, "options": {"num_ctx": 16}}
        response = client.post(f"/api/{route}", json=body)
        assert (response.status_code, response.json) == (200, answers[route])
        seconds = {None: None, 60: 60.0, "5m": 300.0, 0: 0}[keep_alive]
        expected = ("unload", "demo:latest") if keep_alive == 0 else ("load", "demo:latest", 16, seconds)
        assert engine.calls == [expected]
    assert not engine.embed_requests


INPUT_TYPE = "invalid input type"


@pytest.mark.parametrize(
    ("route", "body", "status", "text"),
    [
        ("embed", {"input": 5}, 400, INPUT_TYPE),
        ("embed", {"input": 1.5}, 400, INPUT_TYPE),
        ("embed", {"input": True}, 400, INPUT_TYPE),
        ("embed", {"input": {}}, 400, INPUT_TYPE),
        ("embed", {"input": ["a", 1]}, 400, INPUT_TYPE),
        ("embed", {"input": ["a", None]}, 400, INPUT_TYPE),
        ("embed", {"input": [["a"]]}, 400, INPUT_TYPE),
        ("embed", {"input": [1, 2, 3]}, 400, INPUT_TYPE),
        ("embed", {"input": 5, "model": "nope"}, 400, INPUT_TYPE),
        ("embed", {"input": ["a", ""]}, 400, "input 1 has no tokens; write some text"),
        ("embed", {"model": ""}, 404, "model '' not found"),
        ("embed", {"model": None}, 404, "model '' not found"),
        ("embed", {"model": "nope"}, 404, 'model "nope" not found, try pulling it first'),
        ("embed", {"model": "../x"}, 404, 'model "../x" not found, try pulling it first'),
        ("embed", {"truncate": "yes"}, 400, 'json: field "truncate" must be of type boolean, not string'),
        ("embed", {"dimensions": "8"}, 400, 'json: field "dimensions" must be of type integer, not string'),
        ("embed", {"options": {"num_ctx": "a"}}, 500, 'option "num_ctx" must be of type integer'),
        ("embed", {"options": []}, 400, 'json: field "options" must be of type object, not array'),
        ("embeddings", {"model": ""}, 400, "model is required"),
        ("embeddings", {"model": "nope"}, 404, 'model "nope" not found, try pulling it first'),
        ("embeddings", {"prompt": ["a"]}, 400, 'json: field "prompt" must be of type string, not array'),
        ("embeddings", {"options": {"num_ctx": []}}, 500, 'option "num_ctx" must be of type integer'),
    ],
)
def test_bad_requests(client, engine, route, body, status, text):
    response = {"embed": embed, "embeddings": embeddings}[route](client, **body)
    assert (response.status_code, response.json) == (status, {"error": text})
    assert not engine.embed_requests


@pytest.mark.parametrize("route", ["embed", "embeddings"])
def test_bodies_that_are_no_request(client, route):
    response = client.post(f"/api/{route}")
    assert (response.status_code, response.json) == (400, {"error": "missing request body"})
    assert client.post(f"/api/{route}", data="{").status_code == 400
    assert client.get(f"/api/{route}").status_code == 405


@pytest.mark.parametrize("value", HOSTILE)
@pytest.mark.parametrize("name", ["dimensions", "truncate", "input", "num_ctx", "keep_alive", "model"])
def test_hostile_values_are_taken_or_refused(client, engine, name, value):
    engine.embeds([1.0, 2.0])
    body = {"model": "demo", "input": "Hello"} | ({"options": {name: value}} if name == "num_ctx" else {name: value})
    response = client.post("/api/embed", data=json.dumps(body))
    allowed = (200, 400, 500) if name == "num_ctx" else (200, 400, 404)
    assert response.status_code in allowed
    assert ("error" in response.json) == (response.status_code != 200)
    assert len(response.data) < 1000
    for constant in ("NaN", "Infinity", "-Infinity", "1e999"):
        text = json.dumps(body).replace(json.dumps(value), constant, 1)
        assert client.post("/api/embed", data=text).status_code in (200, 400, 404)


def test_the_number_of_inputs_is_bounded(client, engine):
    engine.embeds(*[[1.0, 0.0]] * MAX_INPUTS)
    assert len(embed(client, input=["a"] * MAX_INPUTS).json["embeddings"]) == MAX_INPUTS
    response = embed(client, input=["a"] * (MAX_INPUTS + 1))
    text = "input holds 2049 texts; send at most 2048 in one request"
    assert (response.status_code, response.json) == (400, {"error": text})


@pytest.mark.parametrize("context", [None, 16, 4, 1000])
def test_long_input_is_cut_or_refused(client, engine, context):
    options = {} if context is None else {"num_ctx": context}
    limit = min(context or 64, 64)
    text = "Hello, world. " * 40
    ids = engine.tokenizer.encode(text).ids
    engine.embeds([1.0], [1.0])
    response = embed(client, input=["x", text], options=options)
    assert response.status_code == 200
    assert engine.embed_requests[0].prompts[1].tolist() == ids[:limit]
    assert engine.embed_requests[0].context == (None if context is None else limit)
    response = embed(client, input=["x", text], options=options, truncate=False)
    assert (response.status_code, response.json) == (400, {"error": "the input length exceeds the context length"})
    response = embeddings(client, prompt=text, options=options)
    assert (response.status_code, response.json) == (500, {"error": "the input length exceeds the context length"})
    exact = engine.tokenizer.decode(ids[:3])
    engine.embeds([1.0])
    assert embed(client, input=exact, options=options, truncate=False).status_code == 200


def test_megabytes_of_text_are_cut_before_they_are_read(client, engine):
    engine.embeds([1.0])
    assert embed(client, input="x" * 5_000_000).status_code == 200
    assert len(engine.embed_requests[0].prompts[0]) == 64


def test_special_tokens_in_a_text_are_characters(client, engine):
    engine.embeds([1.0])
    embed(client, input="a<|end|>")
    assert engine.tokenizer.token_to_id("<|end|>") not in engine.embed_requests[0].prompts[0]


ERRORS = [
    ("busy", "x", 503, 503, BUSY),
    ("shutdown", "stopping", 503, 503, "stopping"),
    ("unavailable", "gone", 503, 503, "gone"),
    ("timeout", "late", 504, 504, "late"),
    ("model", "cannot load", 500, 500, "cannot load"),
    ("context", "too long", 400, 500, "too long"),
    ("request", "bad", 400, 500, "bad"),
    ("internal", "embedding contains NaN or Inf values", 400, 500, "embedding contains NaN or Inf values"),
    ("internal", "see /home/me/x/model.safetensors", 400, 500, "see model.safetensors"),
    ("cancelled", "request canceled", 499, 499, "request canceled"),
]


@pytest.mark.parametrize(("code", "message", "status", "older_status", "text"), ERRORS)
def test_engine_errors(client, engine, code, message, status, older_status, text):
    for stage in ("send", "event"):
        error = EngineError(code, message)
        engine.refusal = error if stage == "send" else None
        engine.events = [error]
        for ask, expected in ((embed, status), (embeddings, older_status)):
            response = ask(client)
            assert (response.status_code, response.json) == (expected, {"error": text})
            assert ("Retry-After" in response.headers) == (expected == 503)


def test_a_cancelled_request_is_no_answer(client, engine):
    engine.embeds([1.0])
    engine.events[-1] = Done("cancel", Usage())
    assert embed(client).status_code == 499
    engine.events = [Done("cancel", Usage())]
    assert embeddings(client).status_code == 499


def test_ignored_options_are_named(client, engine):
    engine.embeds([1.0])
    response = embed(client, options={"num_gpu": 1, "numa": True, "timeout": 1.5})
    assert engine.embed_requests[0].timeout_s == 1.5
    assert response.headers["Warning"] == '299 ollampi "ignored options: numa"'
