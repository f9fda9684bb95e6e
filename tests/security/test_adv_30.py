"""Advisory 30: special tokens in a user's text (CVE-2026-44222) are text."""

from __future__ import annotations

import json

import pytest
from support.servers import DEMO

TOKENS = [token["content"] for token in json.loads((DEMO / "tokenizer.json").read_text())["added_tokens"]]
OTHERS = ["<|vision_start|>", "<image>", "<|image_pad|>", "[IMG]", "<|begin_of_text|>", "</s>", "[TOOL_CALLS]", "<unk>"]
FEW = {"num_predict": 2, "temperature": 0}


@pytest.mark.parametrize("text", ["".join(TOKENS), "".join(OTHERS), *TOKENS])
def test_special_tokens_are_text(attacked, text):
    turn = [{"role": "user", "content": text}]
    counts = []
    for content in (text, ""):
        status, answer = attacked.post("/api/chat", messages=[{"role": "user", "content": content}], options=FEW)
        assert status == 200
        counts.append(answer["prompt_eval_count"])
    assert counts[0] - counts[1] > len(text) / 8, "one id for each would be fewer"
    for path, body in (
        ("/api/generate", {"prompt": text, "options": FEW}),
        ("/api/generate", {"prompt": text, "raw": True, "options": FEW}),
        ("/api/embed", {"input": text}),
        ("/v1/chat/completions", {"messages": turn, "max_tokens": 2}),
        ("/v1/messages", {"messages": turn, "max_tokens": 2}),
    ):
        assert attacked.post(path, **body)[0] in (200, 400), path
