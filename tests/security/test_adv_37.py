"""Advisory 37: sampling numbers out of range (llama.cpp 19367) are refused, not computed with."""

from __future__ import annotations

import pytest


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("temperature", 1e9), ("temperature", -0.1), ("top_p", -1), ("top_p", 1.1), ("min_p", 2), ("min_p", -1)],
        *[("repeat_penalty", 0), ("repeat_penalty", -1), ("typical_p", -1), ("presence_penalty", 1e9)],
        *[("frequency_penalty", -1e9), ("timeout", 0), ("timeout", -1)],
    ],
)
def test_numbers_out_of_range(attacked, name, value):
    status, answer = attacked.post("/api/generate", prompt="x", options={name: value})
    assert status == 400
    assert answer["error"].startswith(f'option "{name}" is ')


@pytest.mark.parametrize("temperature", [1e-30, 1e-6, 1000])
def test_the_ends_of_the_range_make_text(attacked, temperature):
    options = {"temperature": temperature, "num_predict": 8, "seed": 1, "repeat_penalty": 1000, "min_p": 1, "top_p": 0}
    status, answer = attacked.post("/api/generate", prompt="import os", logprobs=True, options=options)
    assert status == 200
    assert all(-1e9 <= entry["logprob"] <= 1e-6 for entry in answer["logprobs"])
