"""Check what ends an answer that would not end by itself, and what is refused because there is too much of it."""

from __future__ import annotations

import json

import pytest

from ollampi.api.engine_client import Done, EngineError, Tokens
from ollampi.mpiruntime.request import Usage

USAGE = Usage(prompt_tokens=1)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("fails", [False, True])
def test_every_answer_closes_its_stream(client, engine, stream, fails):
    if fails:
        engine.events = [EngineError("internal", "broken")]
    client.post("/api/generate", json={"model": "demo", "prompt": "x", "stream": stream}).close()
    assert [s.closed for s in engine.streams] == [True]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("unit", ["a", "\n", "🙂", "<|im_end|>"])
def test_an_answer_in_circles_ends(client, engine, unit, stream):
    ids = engine.tokenizer.encode(unit).ids
    engine.events = [Tokens(ids)] * 1000 + [Done("stop", USAGE)]
    response = client.post("/api/generate", json={"model": "demo", "prompt": "x", "stream": stream})
    last = json.loads(response.text.splitlines()[-1])
    assert (last["done"], last["done_reason"]) == (True, "length")
    said = "".join(json.loads(line)["response"] for line in response.text.splitlines())
    assert said == ("" if unit.startswith("<") else unit * 32)
    assert last["eval_count"] == len(ids) * 32
    assert engine.streams[0].cancelled


def test_an_answer_may_repeat_itself_a_little(client, engine):
    engine.says("a" + " a" * 30 + " b" * 31 + "\n" * 31 + "abab" * 20)
    answer = client.post("/api/generate", json={"model": "demo", "prompt": "x", "stream": False}).json
    assert answer["done_reason"] == "stop"
    assert answer["response"].endswith("abab")


@pytest.mark.parametrize(("limit", "tokens"), [(-2, 320), (0, 320), (1, 1), (320, 320), (321, 320), (2**31 - 1, 320)])
def test_no_answer_is_longer_than_ten_contexts(client, engine, limit, tokens):
    options = {"num_ctx": 32, "num_predict": limit}
    client.post("/api/generate", json={"model": "demo", "prompt": "x", "options": options})
    assert engine.requests[0].max_tokens == tokens


def test_too_many_of_anything(client):
    many = [{}] * 10_001
    for route, body, text in (
        ("generate", {"context": [1] * (11 * 64 + 1)}, '"context" holds 705 entries; leave out all but 704'),
        ("generate", {"context": ["x"] * 10_000}, '"context" holds 10000 entries; leave out all but 704'),
        ("chat", {"messages": many}, '"messages" holds 10001 entries; leave out all but 10000'),
        ("chat", {"messages": [{"tool_calls": many[:2]}] * 5001}, "the messages hold more than 10000 tool calls"),
        ("chat", {"messages": [{}], "tools": many}, '"tools" holds 10001 entries; leave out all but 10000'),
        (
            "chat",
            {"messages": [{}], "options": {str(i): 0 for i in range(1001)}},
            "options holds 1001 names; leave out",
        ),
        ("chat", {"messages": [{}], "options": {"stop": [1] * 10_000}}, 'option "stop" must be of an array of strings'),
        ("chat", {"messages": [{}], "options": {"stop": ["x"] * 65}}, 'option "stop" takes at most 64 strings'),
    ):
        response = client.post(f"/api/{route}", json={"model": "demo", "prompt": "x"} | body)
        assert response.status_code == (500 if "array of" in text else 400)
        assert response.json["error"].startswith(text)
