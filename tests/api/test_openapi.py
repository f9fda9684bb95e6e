"""The OpenAPI document: valid, complete both ways, true of the answers; and the page that shows it."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from typing import Any

import jsonschema_rs
import pytest
import schemathesis

from ollampi.api.access import Keys, Permission
from ollampi.api.app import create_app
from ollampi.api.openapi import openapi_document
from ollampi.api.routes import Route
from ollampi.api.settings import Settings
from ollampi.api.store.catalog import Store
from ollampi.api.store.local import LocalStore
from ollampi.api.wires.body import Body
from ollampi.api.wires.ollama_bodies import ChatBody
from ollampi.mpiruntime.request import LoadedModel

DRAFT = "https://json-schema.org/draft/2020-12/schema"


@pytest.fixture
def document(client) -> dict[str, Any]:
    response = client.get("/api/openapi.json")
    assert response.headers["Content-Type"] == "application/json; charset=utf-8"
    return response.json


def validator(document: dict[str, Any], schema: dict[str, Any]) -> Any:
    """Return a validator of one schema of the document."""
    return jsonschema_rs.Draft202012Validator({**schema, "components": document["components"]})


def references(value: Any) -> list[str]:
    if isinstance(value, dict):
        own = [value["$ref"]] if "$ref" in value else []
        return own + [r for item in value.values() for r in references(item)]
    return [r for item in value for r in references(item)] if isinstance(value, list) else []


def test_schemathesis_reads_it_and_every_schema_is_one(client, document):
    operations = list(schemathesis.openapi.from_dict(document).get_all_operations())
    assert operations
    assert all(type(operation).__name__ == "Ok" for operation in operations), operations
    for name, schema in document["components"]["schemas"].items():
        jsonschema_rs.meta.validate(schema)
        assert validator(document, schema), name
    for reference in references(document):
        assert reference.removeprefix("#/components/schemas/") in document["components"]["schemas"]
    assert document["openapi"] == "3.1.0"
    ids = [o["operationId"] for methods in document["paths"].values() for o in methods.values()]
    assert len(set(ids)) == len(ids)


def test_every_rule_is_in_it_and_nothing_else(client, document):
    served = set()
    for rule in client.application.url_map.iter_rules():
        path = re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", rule.rule)
        methods = rule.methods - {"OPTIONS"} - ({"HEAD"} if "GET" in rule.methods else set())
        served |= {(path, method.lower()) for method in methods}
    assert served == {(path, method) for path, methods in document["paths"].items() for method in methods}
    for path, methods in document["paths"].items():
        for operation in methods.values():
            declared = [p["name"] for p in operation.get("parameters", []) if p["in"] == "path"]
            assert declared == re.findall(r"{(\w+)}", path)


def test_null_counts_as_absent_and_types_are_kept(document):
    check = validator(document, {"$ref": "#/components/schemas/ChatBody"})
    fields = document["components"]["schemas"]["ChatBody"]["properties"]
    assert check.is_valid(dict.fromkeys(fields))
    assert check.is_valid({"messages": [{"role": None}], "options": {"seed": None}, "unknown": 1})
    for wrong in ({"model": 1}, {"messages": ["x"]}, {"stream": "yes"}, {"top_logprobs": 21}, {"think": "very"}):
        assert not check.is_valid(wrong), wrong


WRONG_OPTIONS = [
    ("num_ctx", "a"), ("seed", True), ("temperature", 1001), ("top_p", -0.1), ("stop", "x"), ("stop", [1]),
    ("stop", ["x"] * 65), ("use_mmap", 1), ("logit_bias", {"x": 1}), ("logit_bias", {"1": 1001}),
    ("grammar", {"regex": 1}), ("grammar", {}), ("timeout", 0), ("repeat_penalty", 0), ("num_predict", 2**31),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value"), WRONG_OPTIONS)
def test_options_that_the_document_forbids_are_refused(client, document, name, value):
    assert not validator(document, {"$ref": "#/components/schemas/Options"}).is_valid({name: value})
    response = client.post("/api/generate", json={"model": "demo", "prompt": "x", "options": {name: value}})
    assert response.status_code in (400, 500)


def test_fractions_of_whole_options_are_cut_off_before_their_bounds_count(client, document):
    check = validator(document, {"$ref": "#/components/schemas/Options"})
    for name, value in (("num_gpu", 2147483647.5), ("repeat_last_n", -1.9), ("top_k", 3.7)):
        assert check.is_valid({name: value})
        body = {"model": "demo", "prompt": "x", "stream": False, "options": {name: value}}
        assert client.post("/api/generate", json=body).status_code == 200


def test_options_have_the_defaults_of_the_code(client, engine, document):
    client.post("/api/generate", json={"model": "demo", "prompt": "x"})
    told = document["components"]["schemas"]["Options"]["properties"]
    for name in ("temperature", "top_k", "top_p", "min_p", "repeat_last_n", "repeat_penalty"):
        assert told[name]["default"] == getattr(engine.requests[0].sampling, name)
    assert (told["num_keep"]["default"], told["seed"]["default"]) == (4, -1)


CHAT = {"model": "thinker", "messages": [{"role": "user", "content": "x"}]}
ANSWERS: list[tuple[str, str, dict[str, Any] | None]] = [
    ("GET", "/api/version", None),
    ("GET", "/api/tags", None),
    ("GET", "/api/ps", None),
    ("GET", "/api/status", None),
    ("GET", "/api/experimental/model-recommendations", None),
    ("POST", "/api/show", {"model": "demo"}),
    ("POST", "/api/show", {"model": "thinker", "verbose": True, "system": "x"}),
    ("POST", "/api/generate", {"model": "demo", "prompt": "x"}),
    ("POST", "/api/generate", {"model": "demo", "prompt": "x", "logprobs": True, "stream": False}),
    ("POST", "/api/generate", {"model": "demo"}),
    ("POST", "/api/generate", {"model": "demo", "keep_alive": 0}),
    ("POST", "/api/generate", {"model": "demo", "prompt": "x", "_debug_render_only": True}),
    ("POST", "/api/chat", CHAT),
    ("POST", "/api/chat", CHAT | {"stream": False, "logprobs": True}),
    ("POST", "/api/chat", CHAT | {"_debug_render_only": True}),
    ("POST", "/api/chat", {"model": "demo"}),
    ("POST", "/api/embed", {"model": "demo", "input": ["x", "y"]}),
    ("POST", "/api/embed", {"model": "demo"}),
    ("POST", "/api/embeddings", {"model": "demo", "prompt": "x"}),
    ("POST", "/api/embeddings", {"model": "demo"}),
    ("GET", "/api/cluster/status", None),
    ("GET", "/api/cluster/nodes", None),
    ("GET", "/api/cluster/health", None),
    ("GET", "/api/cluster/model/list", None),
    ("GET", "/api/cluster/model/info?model=demo", None),
    ("POST", "/api/cluster/model/load", {"model": "demo"}),
    ("POST", "/api/cluster/model/load", {"model": "demo", "stream": True}),
    ("POST", "/api/cluster/model/unload", {"model": "demo"}),
    ("POST", "/api/cluster/leave", {"timeout": 1}),
    ("GET", "/api/v1/health", None),
    ("GET", "/api/v1/proxy/status", None),
    ("GET", "/api/v1/proxy/instances", None),
    ("GET", "/api/v1/proxy/metrics", None),
]


@pytest.mark.parametrize(("method", "path", "body"), ANSWERS)
def test_answers_are_as_the_document_says(client, engine, models_folder, document, method, path, body):
    engine.models = [LoadedModel("demo:latest", str(models_folder / "demo"), 200, 50, 32, None)]
    engine.models.append(LoadedModel("gone:latest", "/gone", 200, 50, 32, 1.5e9))
    if "embed" in path:
        engine.embeds([3.0, 4.0], *[[1.0, 0.5]] * (path == "/api/embed"))
    elif path == "/api/chat":
        engine.says("<think>hm</think>Hello", logprobs=True)
    else:
        engine.says("Hello", logprobs=True)
    response = client.open(path, method=method, json=body)
    assert response.status_code == 200, response.text
    told = document["paths"][path.partition("?")[0]][method.lower()]["responses"]["200"]
    media = told["content"][response.mimetype]
    schema = media.get("x-itemSchema", media["schema"])
    for line in response.text.splitlines():
        validator(document, schema).validate(json.loads(line))


@pytest.mark.parametrize("stream", [True, False])
def test_progress_is_as_the_document_says(engine, models_folder, tmp_path, document, stream):
    client = create_app(engine, Store([models_folder], LocalStore(tmp_path)), Settings()).test_client()
    response = client.post("/api/create", json={"model": "made", "from": "demo", "stream": stream})
    assert response.status_code == 200, response.text
    media = document["paths"]["/api/create"]["post"]["responses"]["200"]["content"][response.mimetype]
    steps = [json.loads(line) for line in response.text.splitlines()]
    for step in steps:
        validator(document, media.get("x-itemSchema", media["schema"])).validate(step)
    assert steps[-1]["status"] == "success"


def test_every_ollama_route_with_an_answer_is_held_to_it(client):
    checked = {(method, path) for method, path, _ in ANSWERS}
    for route in client.application.config["ROUTES"].values():
        described = isinstance(route.answer, type) and route.answer.__module__.endswith("ollama_answers")
        if described and route.answer.__name__ != "Progress":
            assert (route.method, route.path) in checked, f"add an answer of {route.endpoint} to ANSWERS"


@pytest.mark.parametrize("path", ["/api/show", "/v1/chat/completions", "/v1/messages"])
def test_errors_have_the_shape_of_their_wire(client, document, path):
    response = client.post(path, data=b"x")
    assert response.status_code == 400
    media = document["paths"][path]["post"]["responses"]["400"]["content"]["application/json"]
    validator(document, media["schema"]).validate(response.json)


def test_the_document_says_where_keys_are_asked_for(engine, store):
    app = create_app(engine, store, Settings(keys=Keys(((b"x" * 32, "admin"),))))
    paths = app.test_client().get("/api/openapi.json").json["paths"]
    assert "security" not in paths["/api/version"]["get"]
    assert paths["/api/chat"]["post"]["security"] == [{"bearer": []}, {"apiKey": []}]


def test_two_bodies_of_one_name_are_a_mistake():
    names = {"__annotations__": {"x": str}, "__module__": ChatBody.__module__}
    other = type("ChatBody", (Body,), names)
    routes = [
        Route("POST", f"/{i}", Permission.USE, "x", lambda: None, kind) for i, kind in enumerate((ChatBody, other))
    ]
    with pytest.raises(ValueError, match="rename"):
        openapi_document(routes, with_keys=False)


@pytest.mark.parametrize("path", ["/api/openapi.json", "/api/docs"])
def test_what_has_not_changed_is_not_sent_again(client, path):
    tag = client.get(path).headers["ETag"]
    response = client.get(path, headers={"If-None-Match": tag})
    assert (response.status_code, response.data) == (304, b"")


class Tags(HTMLParser):
    """Collects the tags of a page, and checks that each is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: set[str] = set()
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta",):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_shows_every_operation_and_runs_nothing(client, document):
    response = client.get("/api/docs")
    assert response.content_type == "text/html; charset=utf-8"
    policy = response.headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'")
    assert "unsafe" not in policy
    page = Tags()
    page.feed(response.text)
    assert not page.open
    assert "script" not in page.seen
    assert page.links == ["/api/openapi.json"]
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            assert f'id="{operation["operationId"]}"' in response.text
            assert f"<b>{method.upper()}</b> <code>{path}</code>" in response.text
    assert response.text.count("<pre>curl") == sum(len(methods) for methods in document["paths"].values())
