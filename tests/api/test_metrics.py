"""GET /metrics is what Prometheus reads: every value, once, in families that are documented."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from ollampi.api.app import create_app
from ollampi.api.engine_client import EngineError
from ollampi.api.metrics import FAMILIES
from ollampi.api.settings import Settings
from ollampi.api.store.catalog import Store
from ollampi.api.store.local import LocalStore

DOCUMENT = (Path(__file__).resolve().parents[2] / "docs" / "metrics.md").read_text()
HISTOGRAM = {"bounds": [0.1, 2.5], "counts": [3, 0, 2], "sum": 11.5}


def families(text: str) -> dict[str, Metric]:
    """Return the families of an exposition by the name that is written; the parser drops a counter's _total."""
    found = list(text_string_to_metric_families(text))
    names = [f"{family.name}_total" if family.type == "counter" else family.name for family in found]
    assert len(set(names)) == len(names)
    return dict(zip(names, found, strict=True))


def test_the_answer_is_what_prometheus_expects(make_client, models_folder, engine):
    engine.samples = [
        ("ollampi_requests_total", {"model": 'a"b\\c\nd', "outcome": "stop"}, 7),
        ("ollampi_requests_running", {"model": "m"}, 3),
        ("ollampi_step_seconds", {"model": "m", "rank": "1"}, HISTOGRAM),
    ]
    answer = make_client(models_folder).get("/metrics")
    assert (answer.status_code, answer.content_type) == (200, "text/plain; version=0.0.4; charset=utf-8")
    found = families(answer.text)
    (sample,) = found["ollampi_requests_total"].samples
    assert (sample.labels, sample.value) == ({"model": 'a"b\\c\nd', "outcome": "stop"}, 7)
    (sample,) = found["ollampi_requests_running"].samples
    assert (sample.labels, sample.value) == ({"model": "m"}, 3)
    histogram = {(s.name, s.labels.get("le")): s.value for s in found["ollampi_step_seconds"].samples}
    assert histogram == {
        ("ollampi_step_seconds_bucket", "0.1"): 3,
        ("ollampi_step_seconds_bucket", "2.5"): 3,
        ("ollampi_step_seconds_bucket", "+Inf"): 5,
        ("ollampi_step_seconds_count", None): 5,
        ("ollampi_step_seconds_sum", None): 11.5,
    }


def test_every_family_is_in_the_answer_and_in_the_document(make_client, models_folder):
    found = families(make_client(models_folder).get("/metrics").text)
    assert {name: family.type for name, family in found.items()} == {n: kind for n, (_, kind, _) in FAMILIES.items()}
    rows = re.findall(r"^\| `(ollampi_\w+)` \| (\w+) \|(.*?)\| .+ \|$", DOCUMENT, re.M)
    table = {name: (tuple(re.findall(r"`(\w+)`", labels)), kind) for name, kind, labels in rows}
    assert len(table) == len(rows)
    assert table == {name: (labels, kind) for name, (labels, kind, _) in FAMILIES.items()}


def test_requests_are_counted_by_route_and_status(make_client, models_folder, engine):
    client = make_client(models_folder)
    engine.says("hello")
    for _ in range(2):
        client.post("/api/generate", json={"model": "demo", "prompt": "x"}).get_data()
    client.post("/api/generate", data=b"{")
    for path in ("/nope", "/other/nope"):
        client.get(path)
    client.get("/", headers={"Origin": "http://evil.example"})
    counted = {
        (s.labels["route"], s.labels["status"]): s.value
        for s in families(client.get("/metrics").text)["ollampi_http_requests_total"].samples
    }
    assert counted == {
        ("/api/generate", "200"): 2,
        ("/api/generate", "400"): 1,
        ("none", "404"): 2,
        ("/", "403"): 1,
    }


def test_a_stream_is_open_until_it_is_closed(make_client, models_folder, engine):
    client = make_client(models_folder)

    def open_requests() -> float:
        (sample,) = families(client.get("/metrics", buffered=True).text)["ollampi_http_requests_open"].samples
        return sample.value

    assert open_requests() == 1  # the scrape itself
    engine.says("hello")
    streams = [client.post("/api/generate", json={"model": "demo", "prompt": "x"}, buffered=False) for _ in range(3)]
    assert open_requests() == 4
    for stream in streams:
        stream.close()
    assert open_requests() == 1


@pytest.mark.parametrize("code", ["unavailable", "shutdown"])
def test_a_scrape_without_an_engine_is_503(make_client, models_folder, engine, code):
    engine.refusal = EngineError(code, "the engine went away; try again in a few seconds")
    answer = make_client(models_folder).get("/metrics")
    assert answer.status_code == 503
    assert answer.json == {"error": "the engine went away; try again in a few seconds"}


def test_a_blob_that_was_sent_is_no_open_request(engine, tmp_path):
    local = LocalStore(tmp_path)
    digest = local.blobs.put([b"x" * 10])
    client = create_app(engine, Store([], local), Settings()).test_client()
    for _ in range(3):
        assert client.get(f"/v2/library/m/blobs/{digest}", buffered=True).data == b"x" * 10
    (sample,) = families(client.get("/metrics", buffered=True).text)["ollampi_http_requests_open"].samples
    assert sample.value == 1  # the scrape itself
