"""Advisory 36: negative and odd numbers (CVE-2026-21869): every numeric option with every odd value on every route."""

from __future__ import annotations

from typing import Any

import pytest

from ollampi.api.options import _FLOATS, _INTEGERS

ODD: list[Any] = [-1, -(2**31), 0, 2**31, 2**63, 1.5, 1e308, "1", True, None, [], {}]
NUMBERS = ["NaN", "Infinity", "-Infinity", "1e999", "-0", "0.1e-400"]  # not all of these are JSON
TURN = [{"role": "user", "content": "x"}]
OPENAI = ["temperature", "top_p", "frequency_penalty", "presence_penalty", "seed", "max_tokens", "n", "top_logprobs"]
SHORT = {"stop": ["\n", " ", "e"], "num_predict": 2}


@pytest.mark.parametrize("name", sorted({*_INTEGERS, *_FLOATS}))
def test_options(attacked, name):
    for value in ODD:
        for path, body in (
            ("/api/generate", {"prompt": "x"}),
            ("/api/chat", {"messages": TURN}),
            ("/api/embed", {"input": "x"}),
        ):
            status, answer = attacked.post(path, **body, options=SHORT | {name: value})
            if status == 500:  # what Ollama answers to a wrong type
                assert answer["error"].startswith(f'option "{name}" must be of '), (path, value, answer)
            else:
                assert status in (200, 400, 504), (path, value, answer)


@pytest.mark.parametrize("name", OPENAI)
def test_openais_fields(attacked, name):
    for value in ODD:
        for path, body in (("/v1/chat/completions", {"messages": TURN}), ("/v1/completions", {"prompt": "x"})):
            status, answer = attacked.post(path, **body | {"max_tokens": 2, "stop": ["\n", "e"], name: value})
            assert status in (200, 400), (path, value, answer)


@pytest.mark.parametrize("number", NUMBERS)
def test_numbers_that_json_does_not_have(attacked, number):
    body = (
        f'{{"model":"demo","prompt":"x","stream":false,"options":{{"temperature":{number},"num_predict":2}}}}'.encode()
    )
    head = f"POST /api/generate HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
    assert attacked.raw(head.encode() + body).split(b" ")[1] in (b"200", b"400")
