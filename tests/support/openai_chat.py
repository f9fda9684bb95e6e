"""Ask /v1/chat/completions, and what of its answers is the same in every run."""

from __future__ import annotations

import re
import time

from ollampi.api.wires.openai_answers import ChatCompletion

PATH = "/v1/chat/completions"
BODY = {"model": "chatty", "messages": [{"role": "user", "content": "hi"}]}
USAGE = {"prompt_tokens": 9, "completion_tokens": 2, "total_tokens": 11}
CALLS = '<tool_call>\n{"name": "weather", "arguments": {"city": "Köln"}}\n</tool_call>'
MORE = CALLS + '\n<tool_call>\n{"name": "time", "arguments": {}}\n</tool_call>'
TOOLS = [
    {
        "type": "function",
        "function": {"name": name, "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}},
    }
    for name in ("weather", "time")
]


def masked(value):
    """Return an object with its id and time replaced, for comparing with a golden one."""
    assert re.fullmatch(r"(chatcmpl|cmpl)-[0-9a-f]{24}", value["id"])
    assert abs(value["created"] - time.time()) < 60
    return value | {"id": "ID", "created": 0}


def whole(client, **body):
    response = client.post(PATH, json=BODY | body)
    assert response.status_code == 200, response.text
    ChatCompletion.model_validate(response.json)
    return response.json


def refused(client, **body):
    """Return the text of the 400 that a body gets, in OpenAI's shape."""
    response = client.post(PATH, json=BODY | body)
    assert response.status_code == 400, response.text
    error = response.json["error"]
    assert error | {"message": ""} == {"message": "", "type": "invalid_request_error", "param": None, "code": None}
    return error["message"]
