"""Fields of loads that are none, and where nodes and instances say that the server listens."""

from __future__ import annotations

from typing import Any

import pytest
from support.clusters import a_cluster

from ollampi.mpiruntime.cluster import Wish

AT = "/api/cluster"


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"shard": 2}, '"shard"'),
        ({"node_id": "node-1", "strategies": []}, '"node_id", "strategies"'),
        ({"x" * 5000: 1}, f'"{"x" * 50}..."'),
        ({f"f{i}": i for i in range(9)}, '"f0", "f1", "f2", "f3", "f4", ...'),
    ],
)
def test_fields_that_a_load_does_not_have_are_named(client, engine, fields: dict[str, Any], named: str) -> None:
    response = client.post(f"{AT}/model/load", json={"model": "demo", "shards": 2, **fields})
    has = "model, name, distributed, strategy, shards, replicas, streams, node_ids, context, keep_alive, stream"
    assert (response.status_code, response.json["error"]) == (400, f"json: unknown field {named}; use {has}")
    assert engine.wishes == []


def test_a_field_without_a_value_is_no_field(client, engine) -> None:
    assert client.post(f"{AT}/model/load", json={"model": "demo", "shard": None}).status_code == 200
    assert engine.wishes == [Wish()]


@pytest.mark.parametrize(
    ("host", "endpoint"),
    [
        ("", "http://host0:11434"),
        ("0.0.0.0", "http://host0:11434"),
        ("::", "http://host0:11434"),
        ("127.0.0.1", "http://127.0.0.1:11434"),
        ("::1", "http://[::1]:11434"),
        ("10.0.0.7", "http://10.0.0.7:11434"),
        ("fe80::7", "http://[fe80::7]:11434"),
    ],
)
def test_the_endpoint_is_where_the_server_listens(client, engine, host: str, endpoint: str) -> None:
    engine.job = a_cluster(api_host=host)
    assert {node["endpoint"] for node in client.get(f"{AT}/nodes").json["nodes"]} == {endpoint}
    (instance,) = client.get("/api/v1/proxy/instances").json["instances"]
    assert instance["endpoint"] == endpoint
