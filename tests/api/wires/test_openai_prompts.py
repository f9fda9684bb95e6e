"""Pin several prompts in one request of /v1/completions, and `echo`: choices in the order of prompts, usage, limits."""

from __future__ import annotations

import pytest
from support.events import events

from ollampi.api.engine_client import EngineError
from ollampi.api.wires.openai_answers import TextCompletion

PATH = "/v1/completions"
BODY = {"model": "demo", "prompt": ["def close", "def open(name)"]}


def whole(client, **body):
    response = client.post(PATH, json=BODY | body)
    assert response.status_code == 200, response.text
    TextCompletion.model_validate(response.json)
    return response.json


def asked(engine):
    """Return the prompts that the engine got, in order."""
    return [engine.tokenizer.decode(request.prompt) for request in engine.requests]


def test_each_prompt_has_its_choices(client, engine):
    answer = whole(client, n=2, seed=5)
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]
    assert asked(engine) == ["def close", "def close", "def open(name)", "def open(name)"]
    seeds = [request.sampling.seed for request in engine.requests]
    assert seeds[:2] == seeds[2:]
    assert len(set(seeds)) == 2
    assert answer["usage"] == {"prompt_tokens": 18, "completion_tokens": 8, "total_tokens": 26}  # 9 for each prompt


@pytest.mark.parametrize("n", [1, 2])
def test_streamed(client, n):
    body = BODY | {"n": n, "stream": True, "stream_options": {"include_usage": True}}
    *parts, usage, done = [value for _, value in events(client.post(PATH, json=body))]
    assert done == "[DONE]"
    texts = dict.fromkeys(range(2 * n), "")
    for part in parts:
        (choice,) = part["choices"]
        texts[choice["index"]] += choice["text"]
    assert set(texts.values()) == {"Hello, world"}
    assert [part["choices"][0]["finish_reason"] for part in parts].count("stop") == 2 * n
    tokens = {"prompt_tokens": 18, "completion_tokens": 4 * n, "total_tokens": 18 + 4 * n}
    assert (usage["choices"], usage["usage"]) == ([], tokens)


@pytest.mark.parametrize("prompt", ["def close", ["def close"], ["def close", "def open(name)"]])
@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("n", [1, 2])
def test_echo(client, prompt, stream, n):
    prompts = [prompt] if isinstance(prompt, str) else prompt
    texts = dict.fromkeys(range(n * len(prompts)), "")
    body = BODY | {"prompt": prompt, "echo": True, "stream": stream, "n": n}
    response = client.post(PATH, json=body)
    answers = [value for _, value in events(response)][:-1] if stream else [response.json]
    for choice in (choice for answer in answers for choice in answer["choices"]):
        texts[choice["index"]] += choice["text"]
    assert list(texts.values()) == [f"{text}Hello, world" for text in prompts for _ in range(n)]


@pytest.mark.parametrize("stream", [True, False])
def test_echo_of_an_answer_without_text(client, engine, stream):
    engine.says("")
    response = client.post(PATH, json=BODY | {"prompt": "def close", "echo": True, "stream": stream})
    answers = [value for _, value in events(response)][:-1] if stream else [response.json]
    assert "".join(choice["text"] for answer in answers for choice in answer["choices"]) == "def close"


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ({"prompt": []}, "prompt must be a text or a list of texts"),
        ({"prompt": ["a", ""]}, "prompt[1] is empty"),
        ({"prompt": ["a", 5]}, "prompt must be a text or a list of texts"),
        ({"prompt": ["a"] * 65}, "65 prompts with 1 answers each are more than 64"),
        ({"prompt": ["a"] * 9, "n": 8}, "9 prompts with 8 answers each are more than 64"),
        ({"echo": True, "logprobs": 0}, "echo with logprobs is not supported"),
    ],
)
def test_refusals(client, engine, body, text):
    response = client.post(PATH, json=BODY | body)
    assert (response.status_code, response.json["error"]["type"]) == (400, "invalid_request_error")
    assert response.json["error"]["message"].startswith(text)
    assert not engine.requests


@pytest.mark.parametrize("stream", [True, False])
def test_an_engine_that_refuses_one_prompt(client, engine, stream):
    start, engine.generate = (
        engine.generate,
        lambda request: start(request) if not engine.streams else (_ for _ in ()).throw(EngineError("shutdown", "bye")),
    )
    assert client.post(PATH, json=BODY | {"stream": stream}).status_code == 503
    assert [stream.closed for stream in engine.streams] == [True]
