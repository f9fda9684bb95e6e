"""The forms of `format` and `options.grammar`: what the engine is asked, and what is refused and how."""

from __future__ import annotations

import json

import pytest

from ollampi.api.engine_client import EngineError
from ollampi.api.formats import MAX_GRAMMAR_BYTES
from ollampi.mpiruntime.request import Grammar

SCHEMA = {"type": "object", "properties": {"z": {"type": "string"}, "a": {"enum": ["ü", 1.5]}}, "required": ["z"]}
ROUTES = {
    "generate": {"model": "demo", "prompt": "x", "stream": False},
    "chat": {"model": "chatty", "messages": [{"role": "user", "content": "x"}], "stream": False},
}


def post(client, route, **fields):
    return client.post(f"/api/{route}", data=json.dumps(ROUTES[route] | fields))  # keeps the order of keys


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize(
    ("fields", "grammar"),
    [
        ({}, None),
        ({"format": None}, None),
        ({"format": ""}, None),
        ({"format": "json"}, Grammar("schema", '{"type":"object"}')),
        ({"format": {}}, Grammar("schema", "{}")),
        ({"format": SCHEMA}, Grammar("schema", json.dumps(SCHEMA, ensure_ascii=False))),
        ({"format": {"type": "regex", "regex": "a"}}, Grammar("schema", '{"type": "regex", "regex": "a"}')),
        ({"options": {"grammar": None}}, None),
        ({"options": {"grammar": {"regex": "[a-z]+"}}}, Grammar("regex", "[a-z]+")),
        ({"format": "", "options": {"grammar": {"lark": 'start: "a"'}}}, Grammar("lark", 'start: "a"')),
    ],
    ids=str,
)
def test_the_engine_is_asked_for_the_form(client, engine, route, fields, grammar):
    response = post(client, route, **fields)
    assert response.status_code == 200, response.text
    assert "Warning" not in response.headers
    assert engine.requests[0].grammar == grammar


BOTH = 'format and option "grammar" exclude each other; leave one of them out'
OPTION = 'option "grammar" must be {"regex": "..."} or {"lark": "..."}'


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize(
    ("fields", "status", "text"),
    [
        ({"format": "xml"}, 500, 'invalid format: "xml"; expected "json" or a valid JSON Schema object'),
        ({"format": 3}, 500, 'invalid format: int; expected "json" or a valid JSON Schema object'),
        ({"format": True}, 500, 'invalid format: bool; expected "json" or a valid JSON Schema object'),
        ({"format": ["json"]}, 500, 'invalid format: list; expected "json" or a valid JSON Schema object'),
        ({"format": {"x": "y" * MAX_GRAMMAR_BYTES}}, 400, "format has 262153 bytes, but at most 262144 are read"),
        ({"format": "json", "options": {"grammar": {"regex": "a"}}}, 400, BOTH),
        ({"options": {"grammar": "a"}}, 400, OPTION),
        ({"options": {"grammar": {}}}, 400, OPTION),
        ({"options": {"grammar": {"regex": 3}}}, 400, OPTION),
        ({"options": {"grammar": {"ebnf": "a"}}}, 400, OPTION),
        ({"options": {"grammar": {"regex": "a", "lark": "b"}}}, 400, OPTION),
        ({"options": {"grammar": {"regex": "ü" * MAX_GRAMMAR_BYTES}}}, 400, 'option "grammar" has 524288 bytes'),
    ],
    ids=lambda value: str(value)[:60],
)
def test_other_forms_are_refused(client, engine, route, fields, status, text):
    response = post(client, route, **fields)
    assert response.status_code == status
    assert response.json["error"].startswith(text)
    assert not engine.requests


def test_numbers_that_json_cannot_write_are_refused(client):
    body = json.dumps(ROUTES["generate"] | {"format": {"minimum": "HUGE"}}).replace('"HUGE"', "1e999")
    response = client.post("/api/generate", data=body)
    assert (response.status_code, response.json["error"]) == (
        400,
        "format holds a number beyond all bounds; use a smaller one",
    )


def test_a_deep_schema_is_no_failure_of_ours(client):
    deep = '{"items":' * 900 + "{}" + "}" * 900
    response = client.post("/api/generate", data=json.dumps(ROUTES["generate"])[:-1] + f', "format": {deep}}}')
    assert response.status_code in (200, 400)


@pytest.mark.parametrize("route", ROUTES)
def test_a_grammar_that_the_engine_refuses_is_a_bad_request(client, engine, route):
    engine.events = [EngineError("request", "the grammar cannot be used: it allows no text")]
    for stream in (True, False):
        response = post(client, route, format={"$ref": "#"}, stream=stream)
        assert (response.status_code, response.json) == (
            400,
            {"error": "the grammar cannot be used: it allows no text"},
        )


@pytest.mark.parametrize(
    ("think", "prompt", "reasoning"),
    [
        (None, "x", ("<think>", "</think>", False)),
        (True, "x <think>\n", ("<think>", "</think>", True)),
        (False, "x <think>\n", None),
    ],
)
def test_a_model_that_thinks_reasons_before_the_grammar(client, engine, think, prompt, reasoning):
    body = {"model": "thinker", "prompt": prompt, "raw": True, "think": think, "format": "json", "stream": False}
    assert client.post("/api/generate", json=body).status_code == 200
    found = engine.requests[0].grammar.reasoning
    assert (found and tuple(found)) == reasoning
