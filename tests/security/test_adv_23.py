"""Advisory 23: unbounded counts (CVE-2026-34756): one request must not take the server's memory."""

from __future__ import annotations

import pytest

HUGE = [10**6, 2**31, 2**63, -1]
GROWTH_KIB = 16 << 10
STOP = {"stop": ["\n", " ", "e", "i"], "num_predict": 4, "temperature": 0}


@pytest.mark.parametrize("number", HUGE)
@pytest.mark.parametrize("name", ["num_predict", "num_ctx", "num_batch", "num_keep", "top_k", "repeat_last_n"])
def test_options(attacked, name, number):
    before = attacked.resident()
    status, answer = attacked.post("/api/generate", prompt="import os", options=STOP | {name: number})
    assert status in (200, 400), answer
    assert status == 200 or "between" in answer["error"]
    assert attacked.resident() <= before + GROWTH_KIB


@pytest.mark.parametrize("number", HUGE)
def test_logprobs(attacked, number):
    status, answer = attacked.post("/api/generate", prompt="x", logprobs=True, top_logprobs=number, options=STOP)
    assert (status, answer) == (400, {"error": "top_logprobs must be between 0 and 20"})


@pytest.mark.parametrize("number", HUGE)
@pytest.mark.parametrize("name", ["n", "max_tokens", "max_completion_tokens", "top_logprobs"])
def test_openai(attacked, name, number):
    before = attacked.resident()
    messages = [{"role": "user", "content": "x"}]
    body = {"messages": messages, "stop": "\n", "max_tokens": 4, "logprobs": True, name: number}
    status, answer = attacked.post("/v1/chat/completions", **body)
    assert status in (200, 400), answer
    assert status == 400 or name not in ("n", "top_logprobs"), "only limits may be cut to what is there"
    assert attacked.resident() <= before + GROWTH_KIB


@pytest.mark.parametrize("number", HUGE)
@pytest.mark.parametrize("name", ["n", "best_of", "logprobs", "max_tokens"])
def test_openai_texts(attacked, name, number):
    status, answer = attacked.post("/v1/completions", **{"prompt": "x", "stop": "\n", "max_tokens": 4, name: number})
    assert status in (200, 400), answer
    assert status == 400 or name == "max_tokens"


@pytest.mark.parametrize("number", HUGE)
def test_embeddings(attacked, number):
    before = attacked.resident()
    for path in ("/api/embed", "/v1/embeddings"):
        assert attacked.post(path, input="x", dimensions=number)[0] in (200, 400)
    assert attacked.resident() <= before + GROWTH_KIB


def test_long_lists(attacked):
    assert attacked.post("/api/embed", input=["x"] * 10_000)[0] == 400
    assert attacked.post("/api/generate", prompt="x", options={"stop": ["x"] * 10**5})[0] == 400
    assert (
        attacked.post("/api/generate", prompt="x", options={"logit_bias": {str(i): 1 for i in range(10**5)}})[0] == 400
    )
    assert attacked.post("/api/generate", prompt="x", keep_alive=1e300)[0] == 400
