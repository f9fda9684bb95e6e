"""Pin GET /v1/models as Anthropic has it: objects, pages, errors; without Anthropic's header it is OpenAI's."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from ollampi.api.wires.anthropic_models import ListedModel, ListedModels

PATH = "/v1/models"
HEADERS = {"anthropic-version": "2023-06-01"}


@pytest.fixture
def five(make_model, make_client, tmp_path):
    """Return a client of a server with five models."""
    for name in "abcde":
        make_model(tmp_path / name)
    return make_client(tmp_path)


def listed(client, **query):
    response = client.get(PATH, headers=HEADERS, query_string=query)
    assert response.status_code == 200, response.text
    ListedModels.model_validate(response.json)
    return response.json


def ids(page):
    return [entry["id"] for entry in page["data"]]


def test_models(client, models_folder):
    found = listed(client)
    assert sorted(ids(found)) == ["chatty:latest", "demo:latest", "thinker:latest"]
    assert found | {"data": []} == {"data": [], "first_id": ids(found)[0], "last_id": ids(found)[-1], "has_more": False}
    response = client.get(f"{PATH}/demo", headers=HEADERS)
    ListedModel.model_validate(response.json)
    created = int(max(file.stat().st_mtime for file in (models_folder / "demo").iterdir()))
    text = datetime.fromtimestamp(created, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    assert response.json == {"type": "model", "id": "demo", "display_name": "demo", "created_at": text}
    assert response.headers["request-id"] == response.headers["X-Request-Id"]


def test_pages(five):
    every = ids(listed(five))
    assert len(every) == 5
    first = listed(five, limit=2)
    assert (ids(first), first["has_more"]) == (every[:2], True)
    second = listed(five, limit=2, after_id=first["last_id"])
    assert (ids(second), second["has_more"]) == (every[2:4], True)
    last = listed(five, limit=2, after_id=second["last_id"])
    assert (ids(last), last["has_more"]) == (every[4:], False)
    back = listed(five, limit=3, before_id=last["first_id"])
    assert (ids(back), back["has_more"]) == (every[1:4], True)
    back = listed(five, limit=3, before_id=back["first_id"])
    assert (ids(back), back["has_more"]) == (every[:1], False)


@pytest.mark.parametrize("query", [{"after_id": "gone"}, {"before_id": "gone"}])
def test_a_page_beside_a_model_that_is_gone_is_empty(client, query):
    assert listed(client, **query) == {"data": [], "first_id": None, "last_id": None, "has_more": False}


@pytest.mark.parametrize(
    ("query", "text"),
    [
        ({"limit": 0}, "limit is '0'"),
        ({"limit": 1001}, "limit is '1001'"),
        ({"limit": "x"}, "limit is 'x'"),
        ({"limit": "²"}, "limit is '²'"),
        ({"limit": "9" * 5000}, "limit is '999"),
        ({"after_id": "a", "before_id": "b"}, "after_id and before_id cannot both be given"),
    ],
)
def test_refusals(client, query, text):
    response = client.get(PATH, headers=HEADERS, query_string=query)
    assert (response.status_code, response.json["error"]["type"]) == (400, "invalid_request_error")
    assert response.json["error"]["message"].startswith(text)


def test_an_unknown_model_and_openais_clients(client):
    response = client.get(f"{PATH}/nope", headers=HEADERS)
    assert (response.status_code, response.json["type"]) == (404, "error")
    assert response.json["error"] == {"type": "not_found_error", "message": "model 'nope' not found"}
    assert client.get(f"{PATH}/nope").json["error"]["code"] is None
    assert client.get(PATH).json["object"] == "list"
