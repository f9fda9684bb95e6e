"""Rows of the table of conformance about routes that change the store, over HTTP and word for word."""

from __future__ import annotations

import hashlib
import json
import os

import pytest

from ollampi.api.app import create_app
from ollampi.api.settings import Settings
from ollampi.api.store.catalog import Store
from ollampi.api.store.local import LocalStore

BYTES = b"some bytes"
DIGEST = "sha256:" + hashlib.sha256(BYTES).hexdigest()
OTHER = "sha256:" + hashlib.sha256(b"other bytes").hexdigest()


@pytest.fixture
def client(engine, models_folder, tmp_path):
    return create_app(engine, Store([models_folder], LocalStore(tmp_path)), Settings()).test_client()


def error(response):
    return response.status_code, response.json["error"]


@pytest.mark.parametrize(
    ("path", "body", "status", "text"),
    [
        ("create", {}, 400, "invalid model name"),
        ("create", {"model": "a b", "from": "demo"}, 400, "invalid model name"),
        ("create", {"model": "x"}, 400, "neither 'from' or 'files' was specified"),
        ("create", {"model": "x", "files": {"../x.gguf": DIGEST}}, 400, "file path must be relative"),
        ("create", {"model": "x", "files": {"x.gguf": "sha256:1"}}, 400, "invalid digest format"),
        ("copy", {"source": "nope", "destination": "x"}, 404, 'model "nope" not found'),
        ("copy", {"source": "a b", "destination": "x"}, 400, 'source "a b" is invalid'),
        ("copy", {"source": "demo", "destination": "a b"}, 400, 'destination "a b" is invalid'),
        ("delete", {}, 400, "model is required"),
        ("delete", {"model": "nope"}, 404, "model 'nope' not found"),
        ("delete", {"name": "a b"}, 400, 'name "a b" is invalid'),
        ("push", {}, 400, "model is required"),
    ],
)
def test_refusals(client, path, body, status, text):
    response = client.open(f"/api/{path}", method="DELETE" if path == "delete" else "POST", json=body)
    assert error(response) == (status, text)


def test_blobs(client):
    path = f"/api/blobs/{DIGEST}"
    assert client.head(path).status_code == 404
    assert [client.post(path, data=BYTES).status_code for _ in range(2)] == [201, 200]
    assert client.head(path).status_code == 200
    assert client.head(path.replace("sha256:", "sha256-").replace(DIGEST[7:], DIGEST[7:].upper())).status_code == 200
    assert client.head("/api/blobs/sha256:12").status_code == client.post("/api/blobs/x", data=BYTES).status_code == 400
    wrong = client.post(f"/api/blobs/{OTHER}", data=BYTES)
    assert error(wrong) == (400, f'digest mismatch, expected "{OTHER}", got "{DIGEST}"')
    assert client.head(f"/api/blobs/{OTHER}").status_code == 404


def test_models_are_made_copied_and_removed(client):
    made = client.post("/api/create", json={"model": "made", "from": "demo", "system": "S"})
    assert made.content_type == "application/x-ndjson"
    assert [json.loads(line)["status"] for line in made.text.splitlines()][-2:] == ["writing manifest", "success"]
    whole = client.post("/api/create", json={"name": "made", "from": "demo", "stream": False})
    assert (whole.content_type, whole.json) == ("application/json", {"status": "success"})
    assert (client.post("/api/copy", json={"source": "made", "destination": "Two:b"}).data) == b""
    assert client.post("/api/show", json={"model": "two:B"}).status_code == 200
    for name in ("made", "two:b"):
        response = client.delete("/api/delete", json={"model": name})
        assert (response.status_code, response.data) == (200, b"")


def test_options_of_a_request_go_before_those_of_its_model(client, engine):
    parameters = {"temperature": 0.5, "top_k": 3, "stop": ["zz"], "num_predict": 2}
    made = {"model": "made", "from": "demo", "parameters": parameters, "stream": False}
    assert client.post("/api/create", json=made).json == {"status": "success"}
    body = {"model": "made", "prompt": "x", "stream": False, "options": {"top_k": 9}}
    response = client.post("/api/generate", json=body)
    assert response.status_code == 200, response.text
    asked = engine.requests[0]
    assert (asked.sampling.temperature, asked.sampling.top_k, asked.max_tokens) == (0.5, 9, 2)


def test_a_read_only_store_refuses_writes(engine, models_folder, tmp_path):
    store = Store([models_folder], LocalStore(tmp_path, is_read_only=True))
    client = create_app(engine, store, Settings()).test_client()
    assert client.post("/api/create", json={"model": "made", "from": "demo", "stream": False}).status_code == 403
    assert client.post(f"/api/blobs/{DIGEST}", data=BYTES).status_code == 403
    assert client.post("/api/generate", json={"model": "demo", "prompt": "x"}).status_code == 200


def test_a_pull_that_fails_begins_with_what_failed(client):
    for stream in (False, True):
        response = client.post("/api/pull", json={"model": "127.0.0.1:1/library/nope", "stream": stream})
        last = json.loads(response.text.splitlines()[-1])
        assert last["error"].startswith("pull model manifest: ")


def test_models_are_listed_newest_first(engine, make_model, tmp_path):
    for name, second in (("old", 1e9), ("new", 1.5e9), ("middle", 1.2e9)):
        for file in make_model(tmp_path / name).iterdir():
            os.utime(file, (second, second))
    client = create_app(engine, Store([tmp_path]), Settings()).test_client()
    assert [m["model"] for m in client.get("/api/tags").json["models"]] == ["new:latest", "middle:latest", "old:latest"]
