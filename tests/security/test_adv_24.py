"""Advisory 24: empty prompts and best_of (vLLM 0.5.0, 0.5.4): texts with nothing in them on every route."""

from __future__ import annotations

import pytest

TEXTS = ["", " ", "\n\n\t", "<|endoftext|>", "<|end|>", "<|end|>" * 100, "\u0000", "\ufeff"]
FEW = {"num_predict": 2}


@pytest.mark.parametrize("text", TEXTS)
def test_texts_with_nothing_in_them(attacked, text):
    turn = [{"role": "user", "content": text}]
    for path, body in (
        ("/api/generate", {"prompt": text, "options": FEW}),
        ("/api/generate", {"prompt": text, "raw": True, "options": FEW}),
        ("/api/chat", {"messages": turn, "options": FEW}),
        ("/api/embed", {"input": text}),
        ("/api/embed", {"input": [text, text]}),
        ("/api/embeddings", {"prompt": text}),
        ("/v1/chat/completions", {"messages": turn, "max_tokens": 2}),
        ("/v1/completions", {"prompt": text, "max_tokens": 2}),
        ("/v1/completions", {"prompt": text, "max_tokens": 2, "best_of": 10**6}),
        ("/v1/embeddings", {"input": text}),
        ("/v1/responses", {"input": text, "max_output_tokens": 2}),
        ("/v1/messages", {"messages": turn, "max_tokens": 2}),
    ):
        status, answer = attacked.post(path, **body)
        assert status in (200, 400), (path, answer)
