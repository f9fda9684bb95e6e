"""Pin OpenAI's completions, embeddings and models: their objects, and what each field asks of the engine."""

from __future__ import annotations

import base64
import re
import struct

import pytest
from support.events import events

from ollampi.api.wires.openai_answers import ServedModel, ServedModels, TextCompletion, TextVectors

PATH = "/v1/completions"
BODY = {"model": "demo", "prompt": "def close"}
HEAD = {"id": "ID", "object": "text_completion", "created": 0, "model": "demo", "system_fingerprint": "fp_ollama"}
USAGE = {"prompt_tokens": 9, "completion_tokens": 2, "total_tokens": 11}


def masked(value):
    assert re.fullmatch("cmpl-[0-9a-f]{24}", value["id"])
    return value | {"id": "ID", "created": 0}


def whole(client, **body):
    response = client.post(PATH, json=BODY | body)
    assert response.status_code == 200, response.text
    TextCompletion.model_validate(response.json)
    return response.json


def test_completion(client, engine):
    choices = [{"index": 0, "text": "Hello, world", "finish_reason": "stop"}]
    assert masked(whole(client)) == HEAD | {"choices": choices, "usage": USAGE}
    assert engine.tokenizer.decode(engine.requests[0].prompt) == "def close"
    whole(client, prompt=["def open"], max_tokens=3, stop="x", suffix=None, best_of=1, temperature=0)
    assert engine.tokenizer.decode(engine.requests[1].prompt) == "def open"
    assert (engine.requests[1].max_tokens, engine.requests[1].sampling.temperature) == (3, 0)


def test_completion_streamed(client):
    body = BODY | {"stream": True, "stream_options": {"include_usage": True}}
    *parts, usage, done = [value for _, value in events(client.post(PATH, json=body))]
    assert done == "[DONE]"
    assert masked(usage) == HEAD | {"choices": [], "usage": USAGE}
    texts = [part["choices"][0]["text"] for part in parts]
    assert "".join(texts) == "Hello, world"
    for part, text in zip(parts, texts, strict=True):
        finish = "stop" if part is parts[-1] else None
        assert masked(part) == HEAD | {"choices": [{"index": 0, "text": text, "finish_reason": finish}]}


@pytest.mark.parametrize("stream", [True, False])
def test_logprobs(client, engine, stream):
    engine.says("Hello, Hello", logprobs=True)
    body = BODY | {"logprobs": 2, "stream": stream}
    if stream:
        found = [value["choices"][0] for _, value in events(client.post(PATH, json=body))[:-1]]
    else:
        found = whole(client, logprobs=2)["choices"]
    lists = [choice["logprobs"] for choice in found if "logprobs" in choice]
    tokens = [token for each in lists for token in each["tokens"]]
    assert "".join(tokens) == "Hello, Hello"
    offsets = [offset for each in lists for offset in each["text_offset"]]
    assert offsets == [len("".join(tokens[:place])) for place in range(len(tokens))]
    for each in lists:
        assert list(each) == ["tokens", "token_logprobs", "top_logprobs", "text_offset"]
        assert all(value == -0.5 for value in each["token_logprobs"])
        assert all(len(tops) == 2 for tops in each["top_logprobs"])
    assert engine.requests[0].sampling.top_logprobs == 2


def test_several(client, engine):
    answer = whole(client, n=2, best_of=2)
    assert [(choice["index"], choice["text"]) for choice in answer["choices"]] == [
        (0, "Hello, world"),
        (1, "Hello, world"),
    ]
    assert len(engine.requests) == 2


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ({"prompt": ""}, "prompt[0] is empty"),
        ({"prompt": None}, "prompt must be a text or a list of texts"),
        ({"prompt": [1, 2]}, "prompt must be a text or a list of texts"),
        ({"prompt": [[1, 2]]}, "prompt must be a text or a list of texts"),
        ({"best_of": 2}, "best_of is 2, but it must be n (1)"),
        ({"best_of": 10**6}, "best_of is 1000000, but"),
        ({"best_of": 2**63}, "best_of is 9223372036854775808, but"),
        ({"best_of": 10**4000}, "best_of is 1000000"),
        ({"best_of": -1}, "best_of is -1, but"),
        ({"n": -1}, 'json: field "n": Input should be greater than or equal to 1'),
        ({"logprobs": 21}, 'json: field "logprobs": Input should be less than or equal to 20'),
        ({"logprobs": True}, 'json: field "logprobs" must be of type integer, not boolean'),
        ({"suffix": "y"}, "registry.ollama.ai/library/demo:latest does not support insert"),
    ],
)
def test_refusals(client, engine, body, text):
    response = client.post(PATH, json=BODY | body)
    assert (response.status_code, response.json["error"]["type"]) == (400, "invalid_request_error")
    assert response.json["error"]["message"].startswith(text)
    assert not engine.requests


def test_embeddings(client, engine):
    engine.embeds([3.0, 4.0], [0.0, -2.0])
    response = client.post("/v1/embeddings", json={"model": "demo", "input": ["a", "b"], "user": "me"})
    TextVectors.model_validate(response.json)
    assert response.json == {
        "object": "list",
        "data": [
            {"object": "embedding", "embedding": [0.6, 0.8], "index": 0},
            {"object": "embedding", "embedding": [0.0, -1.0], "index": 1},
        ],
        "model": "demo",
        "usage": {"prompt_tokens": 7, "total_tokens": 7},
    }


def test_embeddings_in_base64_and_cut(client, engine):
    engine.embeds([3.0, 4.0, 12.0])
    body = {"model": "demo", "input": "a", "encoding_format": "base64", "dimensions": 2}
    text = client.post("/v1/embeddings", json=body).json["data"][0]["embedding"]
    assert struct.unpack("<2f", base64.b64decode(text)) == struct.unpack("<2f", struct.pack("<2f", 0.6, 0.8))


INPUT = "input must be a text or a list of texts; token ids are not taken"


@pytest.mark.parametrize(
    ("body", "status", "text"),
    [
        ({"input": None}, 400, INPUT),
        ({"input": []}, 400, INPUT),
        ({"input": [1, 2]}, 400, INPUT),
        ({"input": [[1, 2]]}, 400, INPUT),
        ({"input": 5}, 400, INPUT),
        ({"input": ""}, 400, "input holds an empty text; leave it out"),
        ({"input": ["a", ""]}, 400, "input holds an empty text; leave it out"),
        ({"input": {}}, 400, INPUT),
        ({"input": ["a", None]}, 400, INPUT),
        ({"input": ["a"] * 3000}, 400, ""),
        ({"dimensions": 0}, 400, 'json: field "dimensions"'),
        ({"dimensions": -1}, 400, 'json: field "dimensions"'),
        ({"encoding_format": "hex"}, 400, "encoding_format is 'hex'; use float or base64"),
        ({"model": "nope"}, 404, 'model "nope" not found, try pulling it first'),
    ],
)
def test_embeddings_refusals(client, body, status, text):
    response = client.post("/v1/embeddings", json={"model": "demo", "input": "a"} | body)
    assert response.status_code == status
    assert response.json["error"]["message"].startswith(text)


@pytest.mark.parametrize("dimensions", [10**6, 2**31, 2**63, 10**400])
def test_more_dimensions_than_there_are(client, engine, dimensions):
    engine.embeds([3.0, 4.0])
    response = client.post("/v1/embeddings", json={"model": "demo", "input": "a", "dimensions": dimensions})
    assert response.json["data"][0]["embedding"] == [0.6, 0.8]


def test_models(client, models_folder):
    listed = client.get("/v1/models").json
    ServedModels.model_validate(listed)
    assert sorted(entry["id"] for entry in listed["data"]) == ["chatty:latest", "demo:latest", "thinker:latest"]
    entry = next(entry for entry in listed["data"] if entry["id"] == "demo:latest")
    created = int(max(file.stat().st_mtime for file in (models_folder / "demo").iterdir()))
    assert entry == {"id": "demo:latest", "object": "model", "created": created, "owned_by": "library"}
    ServedModel.model_validate(client.get("/v1/models/demo").json)
    assert client.get("/v1/models/demo").json == entry | {"id": "demo"}
    assert client.get("/v1/models/library/demo:latest").json == entry | {"id": "library/demo:latest"}
    for name in ("nope", "a/b/c/d", "..%2f..", "x" * 1000):
        response = client.get(f"/v1/models/{name}")
        assert (response.status_code, response.json["error"]["type"]) == (404, "not_found_error")


def test_no_models(make_client, tmp_path):
    assert make_client(tmp_path).get("/v1/models").json == {"object": "list", "data": []}
