"""Tools that make no sense are refused with 400 and the tool's name, whatever is wrong with them."""

from __future__ import annotations

import copy
import json
import random
import warnings

import pytest
from support.tool_answers import WEATHER, definition

from ollampi.api.errors import ApiError
from ollampi.api.tools.definitions import tools_of
from ollampi.api.tools.schema_check import TYPES

SCHEMA = {
    "type": "object",
    "description": "Where.",
    "properties": {
        "place": {"type": "string", "pattern": "^[A-Z]", "minLength": 1, "maxLength": 80},
        "unit": {"type": ["string", "null"], "enum": ["C", "F", None]},
        "days": {"type": "array", "items": {"type": "integer", "minimum": 1, "exclusiveMaximum": 15}, "maxItems": 4},
        "near": {"anyOf": [{"$ref": "#/$defs/Point"}, {"type": "null"}]},
    },
    "required": ["place"],
    "additionalProperties": False,
    "$defs": {"Point": {"type": "object", "properties": {"x": {"type": "number", "multipleOf": 0.5}}}},
}
WRONG = [5, -1, "nope", "", True, [], [5], {}, {"a": 5}, "(", "[z-a]", "*", "a{2,1}", [[]], ["nope"], 1.5]
# What each keyword may be of those, by JSON schema: anything else must be refused.
GOOD = {
    "type": [], "pattern": ["nope", "", "(?=x)"], "minLength": [5], "maxLength": [5], "maxItems": [5],
    "minimum": [5, -1, 1.5], "exclusiveMaximum": [5, -1, 1.5, True], "multipleOf": [5, -1, 1.5],
    "required": [[], ["nope"]], "enum": [[], [5], [[]], ["nope"]], "properties": [{}], "$defs": [{}],
    "items": [{}, {"a": 5}, True, []], "anyOf": [[]], "additionalProperties": [{}, {"a": 5}, True],
    "description": ["nope", "", "(", "[z-a]", "*", "a{2,1}"], "$ref": ["nope", "", "(", "[z-a]", "*", "a{2,1}"],
}  # fmt: skip


def places(value, path=()):
    """Yield the place of every keyword within a schema."""
    if isinstance(value, dict):
        for key, item in value.items():
            if key in GOOD:
                yield (*path, key)
            yield from places(item, (*path, key))
    elif isinstance(value, list):
        for number, item in enumerate(value):
            yield from places(item, (*path, number))


def changed(path, value):
    schema = copy.deepcopy(SCHEMA)
    part = schema
    for key in path[:-1]:
        part = part[key]
    part[path[-1]] = value
    return schema


def refusal(values) -> str:
    with pytest.raises(ApiError) as caught:
        tools_of(values)
    assert caught.value.status == 400
    return str(caught.value)


def malformed():
    for path in places(SCHEMA):
        for value in WRONG:
            if not any(type(good) is type(value) and good == value for good in GOOD[path[-1]]):
                yield path, value


def test_five_hundred_malformed_schemas_are_refused_each():
    """Advisory 25: types swapped, `pattern: 5`, `type: "nope"`, bad regular expressions."""
    tools_of([definition("whole", SCHEMA)])
    cases = list(malformed())
    schemas = [changed(path, value) for path, value in cases]
    draw = random.Random(25)
    while len(schemas) < 500:  # deeper, and beside others
        path, value = draw.choice(cases)
        schemas.append({"properties": {"a": SCHEMA, "b": {"items": {"oneOf": [SCHEMA, changed(path, value)]}}}})
    for schema in schemas:
        text = refusal([definition("fine", SCHEMA), definition("weather.x", schema)])
        assert text.startswith("tool 'weather.x': parameters"), schema
    assert len(set(map(str, schemas))) > 400


@pytest.mark.parametrize("path", list(places(SCHEMA)), ids=str)
def test_what_is_allowed_is_let_pass(path):
    for value in [*GOOD[path[-1]], *(TYPES if path[-1] == "type" and len(path) > 1 else ())]:
        (tool,) = tools_of([definition("f", changed(path, value))])
        assert (tool.name, tool.values) == ("f", definition("f", changed(path, value)))


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ([5], "tools[0] must be an object"),
        ([definition("a"), None], "tools[1] must be an object"),
        ([{}], "tools[0].function must be an object"),
        ([{"type": "function", "function": []}], "tools[0].function must be an object"),
        ([{"type": "custom", "function": {"name": "a"}}], 'tools[0].type must be "function"'),
        ([{"type": 5, "function": {"name": "a"}}], 'tools[0].type must be "function"'),
        ([definition("a"), definition("")], "tools[1].function.name must have 1 to 128"),
        ([definition("a" * 129)], "tools[0].function.name must have"),
        ([definition("a b")], "tools[0].function.name must have"),
        ([definition("a\n")], "tools[0].function.name must have"),
        ([definition('a"')], "tools[0].function.name must have"),
        ([definition("a>")], "tools[0].function.name must have"),
        ([{"function": {"name": None}}], "tools[0].function.name must have"),
        ([definition("a", description=5)], "tool 'a': description must be a string"),
        ([definition("a", [])], "tool 'a': parameters must be an object"),
        ([definition("a", "x")], "tool 'a': parameters must be an object"),
        ([definition("a", {"type": "array"})], "tool 'a': parameters.type must be \"object\""),
        ([definition("a", {"type": "object", "default": float("inf")})], "tool 'a': parameters hold a number beyond"),
        ([definition("a", {"description": "x" * (256 << 10)})], "tool 'a': parameters have 262163 bytes"),
        ([definition("a")] * 1025, "tools holds 1025 entries"),
    ],
)  # fmt: skip
def test_what_is_no_tool(values, text):
    assert refusal(values).startswith(text)


@pytest.mark.parametrize("key", ["properties", "items", "anyOf", "not", "default"])
def test_depth_is_bounded(key):
    schema: dict = {"type": "object"}
    for _ in range(5000):
        schema = {"properties": {"a": schema}} if key == "properties" else {key: [schema] if key == "anyOf" else schema}
    text = refusal([definition("deep", {"type": "object", **schema})])
    assert "deep" in text
    assert "nested" in text


@pytest.mark.parametrize("pattern", ["(" * 5000 + ")" * 5000, "a{99999999999999999999}"])
def test_patterns_that_python_cannot_compile(pattern):
    text = refusal([definition("f", {"properties": {"a": {"pattern": pattern}}})])
    assert text.startswith("tool 'f': parameters.properties.a.pattern is")


@pytest.mark.parametrize("pattern", [r"^\p{L}+$", r"(?<name>x)\k<name>", r"\d+\/\w", "[[a]", r"\cA", r"(?<=a*)b"])
def test_patterns_of_other_dialects_are_not_judged(pattern):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tools_of([definition("f", {"properties": {"a": {"pattern": pattern}}})])
    (tool,) = tools_of([definition("f", {"properties": {"a": {"pattern": pattern}}})])
    assert tool.parameters["properties"]["a"] == {"pattern": pattern}


def test_what_clients_send():
    """Absent values as null, as Ollama's clients write them; the prompt gets the definition as it was."""
    values = [
        definition("a"),
        {"function": {"name": "b", "parameters": None, "description": None}},
        definition("c", {"type": "object", "properties": {"x": {"type": "string", "enum": None}}, "required": None}),
        definition("c", WEATHER),
        definition("größe/x.y-z:1@2", {}),
    ]
    tools = tools_of(values)
    assert [tool.name for tool in tools] == ["a", "b", "c", "c", "größe/x.y-z:1@2"]
    assert [tool.parameters for tool in tools[:3]] == [
        {}, {}, {"type": "object", "properties": {"x": {"type": "string"}}},
    ]  # fmt: skip
    assert [tool.values for tool in tools] == json.loads(json.dumps(values))
    assert tools_of([]) == []
