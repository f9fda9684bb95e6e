"""What needs Ollama's cloud, and speech, is answered in a way that clients understand."""

from __future__ import annotations

import io

import pytest


def test_the_cloud_is_off(client):
    assert client.get("/api/status").json == {"cloud": {"disabled": True, "source": "config"}}


def test_nobody_is_signed_in(client):
    response = client.post("/api/me")
    assert (response.status_code, response.json) == (401, {"error": "unauthorized"})


def test_signing_out_is_done(client):
    assert (client.post("/api/signout").status_code, client.delete("/api/user/keys/abc").status_code) == (200, 200)


@pytest.mark.parametrize("route", ["web_search", "web_fetch"])
def test_no_search_through_the_cloud(client, route):
    response = client.post(f"/api/experimental/{route}", json={"query": "x", "url": "http://x"})
    assert response.status_code == 403
    assert "cloud" in response.json["error"]


def test_no_recommendations(client):
    assert client.get("/api/experimental/model-recommendations").json == {"recommendations": []}


@pytest.mark.parametrize(
    ("form", "status", "text"),
    [
        ({"model": "demo"}, 400, "registry.ollama.ai/library/demo:latest does not support audio"),
        ({"model": "nope"}, 404, "model 'nope' not found"),
        ({}, 400, "model is required"),
    ],
)
def test_no_model_hears(client, form, status, text):
    response = client.post("/v1/audio/transcriptions", data=form | {"file": (io.BytesIO(b"RIFF"), "a.wav")})
    assert (response.status_code, response.json["error"]["message"]) == (status, text)


def test_what_is_no_form_names_no_model(client):
    for body, kind in ((b"{}", "application/json"), (b"x", "multipart/form-data; boundary=y"), (b"", None)):
        response = client.post("/v1/audio/transcriptions", data=body, content_type=kind)
        assert response.status_code == 400
    response = client.post("/v1/audio/transcriptions", data={"model": "x" * 100_000, "file": (io.BytesIO(b""), "a")})
    assert response.status_code == 413
