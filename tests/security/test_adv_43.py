"""Advisory 43: prompts and answers longer than the context (llama.cpp 10380) end as documented."""

from __future__ import annotations

import pytest

TEXT = "def read(file):\n    return file.read()\n" * 40


@pytest.mark.parametrize("truncate", [True, False])
@pytest.mark.parametrize("shift", [True, False])
@pytest.mark.parametrize("keep", [0, 4, -1, 1000])
def test_prompts_beyond_the_context(attacked, truncate, shift, keep):
    options = {"num_ctx": 64, "num_predict": 100, "num_keep": keep, "temperature": 0}
    turn = [{"role": "user", "content": TEXT}]
    for path, body in (("/api/generate", {"prompt": TEXT}), ("/api/chat", {"messages": turn})):
        status, answer = attacked.post(path, **body, truncate=truncate, shift=shift, options=options)
        if truncate and shift:
            assert status == 200
            assert answer["prompt_eval_count"] < 64
        else:
            assert status == 400
            assert "the prompt is longer than the context length currently available" in answer["error"]


@pytest.mark.parametrize("shift", [True, False])
def test_answers_beyond_the_context(attacked, shift):
    options = {"num_ctx": 32, "num_predict": 100, "temperature": 0}
    status, answer = attacked.post("/api/generate", prompt="import os\n", raw=True, shift=shift, options=options)
    assert status == 200
    assert answer["done_reason"] in ("length", "stop")
    assert shift or answer["prompt_eval_count"] + answer["eval_count"] <= 33
