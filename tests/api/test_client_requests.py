"""Requests as programs send them that no test runs: Open WebUI and Continue by their sources, others as recorded."""

from __future__ import annotations

import json
import re
from datetime import datetime

import pytest

from ollampi.api.app import create_app
from ollampi.api.settings import Settings
from ollampi.api.store.catalog import Store
from ollampi.api.store.local import LocalStore
from ollampi.mpiruntime.request import LoadedModel

OPEN_WEBUI = {
    "Content-Type": "application/json",
    "X-OpenWebUI-User-Name": "J%C3%BCrgen",
    "X-OpenWebUI-User-Id": "5b1ff3b2",
    "X-OpenWebUI-User-Email": "j@example.org",
    "X-OpenWebUI-User-Role": "user",
    "X-OpenWebUI-Chat-Id": "c1",
}
QUESTION = [{"role": "user", "content": "hi"}]
ANY = {"Accept": "*/*"}


def lines(response):
    assert response.status_code == 200, response.text
    return [json.loads(line) for line in response.text.splitlines()]


def test_open_webui_verifies_a_server_and_lists_its_models(client, engine, models_folder):
    assert re.fullmatch(r"\d+\.\d+\.\d+", client.get("/api/version", headers=OPEN_WEBUI).json["version"])
    for model in client.get("/api/tags", headers=OPEN_WEBUI).json["models"]:
        assert model["name"] == model["model"]
        assert {"modified_at", "size", "digest", "details"} <= set(model)
    engine.models = [LoadedModel("demo:latest", str(models_folder / "demo"), 100, 0, 64, 1.5e9)]
    (running,) = client.get("/api/ps", headers=OPEN_WEBUI).json["models"]
    assert datetime.fromisoformat(running["expires_at"]).timestamp() == 1.5e9


def test_open_webui_chats(client, engine):
    body = {
        "model": "chatty:latest",
        "messages": QUESTION,
        "stream": True,
        "options": {"temperature": 0.5, "num_ctx": 32, "stop": ["###"]},
        "keep_alive": "5m",
        "metadata": {"chat_id": "c1", "files": None, "features": {}},
    }
    answer = lines(client.post("/api/chat", data=json.dumps(body), headers=OPEN_WEBUI))
    assert "".join(line["message"]["content"] for line in answer) == "Hello, world"
    assert answer[-1]["done_reason"] == "stop"
    assert engine.requests[-1].context == 32
    title = {"model": "chatty:latest", "messages": QUESTION, "stream": False, "options": {"num_predict": 1000}}
    assert client.post("/api/chat", json=title, headers=OPEN_WEBUI).json["done"] is True


def test_open_webui_asks_for_vectors_and_shows_models(client, engine):
    engine.embeds([3.0, 4.0])
    body = {"model": "demo:latest", "input": ["a"], "truncate": True}
    assert client.post("/api/embed", json=body, headers=OPEN_WEBUI).json["embeddings"] == [[0.6, 0.8]]
    assert client.post("/api/show", json={"name": "demo:latest"}, headers=OPEN_WEBUI).json["capabilities"] == [
        "completion"
    ]


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [("POST", "chat", {"model": "nope", "messages": QUESTION}), ("POST", "show", {"model": "nope"}),
     ("DELETE", "delete", {"model": "nope"}), ("POST", "embed", {"model": "nope", "input": "x"})],
)  # fmt: skip
def test_open_webui_shows_the_error_of_a_json_body(client, method, path, body):
    response = client.open(f"/api/{path}", method=method, json=body, headers=OPEN_WEBUI)
    assert isinstance(response.json["error"], str)


def test_open_webui_through_openais_routes(client):
    assert {"id", "object"} <= set(client.get("/v1/models", headers=OPEN_WEBUI).json["data"][0])
    body = {"model": "chatty:latest", "messages": QUESTION, "stream": True, "stream_options": {"include_usage": True}}
    response = client.post("/v1/chat/completions", json=body, headers=OPEN_WEBUI)
    assert response.text.endswith("data: [DONE]\n\n")


def test_continue_reads_every_line_of_the_parameters(engine, models_folder, tmp_path):
    client = create_app(engine, Store([models_folder], LocalStore(tmp_path)), Settings()).test_client()
    values = {"temperature": 0.5, "top_k": 7, "stop": ["a b", 'say "x"', "\n"], "seed": -1}
    made = client.post("/api/create", json={"model": "own", "from": "demo", "parameters": values, "stream": False})
    assert made.json == {"status": "success"}
    text = client.post("/api/show", json={"name": "own"}).json["parameters"]
    assert len(text.splitlines()) == 6
    for line in text.splitlines():
        assert re.fullmatch(r'(\S+)\s+((?:".*")|\S+)', line), line
    body = {
        "model": "own",
        "prompt": "x",
        "raw": True,
        "keep_alive": 1800,
        "options": {"num_predict": 2},
        "stream": True,
    }
    assert lines(client.post("/api/generate", json=body))[-1]["done"] is True


def test_langchain_always_streams_and_sends_what_it_does_not_know(client, engine):
    body = {"model": "chatty", "messages": QUESTION, "stream": True, "format": "", "options": {}, "tools": []}
    assert lines(client.post("/api/chat", json=body))[-1]["done"] is True
    engine.embeds([3.0, 4.0])
    names = ("mirostat", "mirostat_eta", "mirostat_tau", "num_ctx", "num_gpu", "num_thread", "repeat_last_n", "tfs_z",
             "repeat_penalty", "temperature", "stop", "top_k", "top_p")  # fmt: skip
    body = {"model": "demo", "input": ["a"], "options": dict.fromkeys(names), "keep_alive": None, "dimensions": None}
    assert client.post("/api/embed", json=body).json["embeddings"] == [[0.6, 0.8]]


def test_litellm_writes_a_prompt_of_its_own_and_asks_by_name(client):
    assert client.post("/api/show", json={"name": "chatty"}, headers=ANY).status_code == 200
    prompt = "### User:\nhi\n\n### Response:\n"
    body = {"model": "demo", "prompt": prompt, "options": {"num_predict": 4}, "stream": False, "images": []}
    assert client.post("/api/generate", json=body, headers=ANY).json["response"] == "Hello, world"
    body = {"model": "chatty", "messages": [QUESTION[0] | {"images": []}], "options": {}, "stream": False}
    assert client.post("/api/chat", json=body, headers=ANY).json["message"]["content"] == "Hello, world"


def test_llama_index_reads_the_context_and_sends_it(client, engine):
    shown = client.post("/api/show", json={"model": "chatty"}).json["model_info"]
    length = shown[f"{shown['general.architecture']}.context_length"]
    assert length == 64
    options = {"temperature": None, "num_ctx": length}
    body = {"model": "chatty", "messages": QUESTION, "stream": False, "options": options, "keep_alive": None}
    assert client.post("/api/chat", json=body).status_code == 200
    assert engine.requests[-1].context == length
    engine.embeds([3.0, 4.0])
    assert client.post("/api/embed", json={"model": "demo", "input": "a", "options": {}}).status_code == 200


def test_the_ai_sdk_tells_every_model_not_to_think(client):
    body = {"model": "chatty", "messages": QUESTION, "temperature": 0, "think": False, "stream": False}
    assert client.post("/api/chat", json=body, headers=ANY).json["message"]["content"] == "Hello, world"
