"""Advisory 25: malformed tool and format schemas (CVE-2025-48944) are refused one by one."""

from __future__ import annotations

import random
from typing import Any

WRONG: list[Any] = [
    5,
    -1,
    1e300,
    True,
    "nope",
    "",
    "(?<=x)*[",
    [],
    [1],
    {},
    {"type": 5},
    "a{99999}",
    ["x", 3],
    "\ud7ff",
]
KEYS = [
    *("type", "pattern", "properties", "required", "items", "enum", "anyOf", "$ref", "minItems", "maxItems", "minimum"),
    *("format", "const", "additionalProperties", "minLength", "maxLength", "oneOf", "allOf", "not", "prefixItems"),
]
TURN = [{"role": "user", "content": "x"}]


def schema(rng: random.Random, depth: int = 0) -> dict[str, Any]:
    """Return a schema in which something is wrong more often than not."""
    made: dict[str, Any] = {}
    for key in rng.sample(KEYS, rng.randint(1, 4)):
        made[key] = schema(rng, depth + 1) if depth < 3 and rng.random() < 0.3 else rng.choice(WRONG)
    return made


def test_formats_and_tools(attacked):
    rng = random.Random(25)
    refused = 0
    for number in range(500):
        wrong = schema(rng)
        tool = {"type": "function", "function": {"name": "f", "parameters": wrong}}
        body: dict[str, Any] = {"options": {"num_predict": 2, "temperature": 0}, "messages": TURN}
        if number % 2:
            status, answer = attacked.post("/api/chat", **body, format=wrong)
        else:
            status, answer = attacked.post(
                "/api/chat", **body | {"model": "caller"}, tools=[tool], tool_choice="required"
            )
        assert status in (200, 400), (wrong, answer)
        assert status == 200 or answer["error"]
        refused += status == 400
    assert refused > 100


def test_tools_that_are_none(attacked):
    for tool in (
        5,
        "x",
        None,
        {},
        {"function": 5},
        {"function": {"name": 5}},
        {"function": {"name": "f", "parameters": 5}},
    ):
        body = {"model": "caller", "messages": TURN, "tools": [tool], "options": {"num_predict": 2}}
        status, answer = attacked.post("/api/chat", **body)
        assert status in (200, 400), (tool, answer)
