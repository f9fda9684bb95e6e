"""Advisory 27: template arguments that override internals (CVE-2025-62426), and templates that block others."""

from __future__ import annotations

import threading
import time

import pytest

TURN = [{"role": "user", "content": "x"}]


@pytest.mark.parametrize("name", ["messages", "tools", "add_generation_prompt", "tokenize", "chat_template", "source"])
def test_template_arguments_are_refused(attacked, name):
    status, answer = attacked.post("/v1/chat/completions", messages=TURN, chat_template_kwargs={name: 1}, max_tokens=1)
    assert status == 400
    assert name in answer["error"]["message"]


def test_nobody_else_waits_for_a_long_template(attacked):
    messages = [{"role": "user", "content": "<|user|>" * 20}] * 400
    end = time.monotonic() + 3

    def flood() -> None:
        while time.monotonic() < end:
            attacked.post("/api/chat", messages=messages, options={"num_predict": 1})

    threads = [threading.Thread(target=flood) for _ in range(4)]
    for thread in threads:
        thread.start()
    answered = 0
    while time.monotonic() < end:
        assert attacked.server.request("GET", "/api/version")[0] == 200
        answered += 1
        time.sleep(0.01)
    for thread in threads:
        thread.join()
    assert answered > 15  # in 3 s: none waited for a whole flood of templates
