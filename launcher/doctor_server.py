"""Look whether a running server is well: its nodes, its coordinator, its models, who counts and who may come in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from urllib.parse import urlsplit

from ollampi.launcher.client import KEY_HINT, ApiError, Client, UnreachableError
from ollampi.launcher.doctor_checks import Finding, found

_AT, _PROXY = "/api/cluster", "/api/v1/proxy"
_LOOPBACK = ("127.", "localhost", "::1")
_PATIENCE_S = 20.0
_REFUSED = (401, 403)
_KEY_REMEDY = "set OLLAMA_API_KEY to a key of this server (docs/security.md)"


def server_findings(client: Client) -> list[Finding]:
    """Return what is to be said of a running server, with the client's key."""
    client = client.impatient(_PATIENCE_S)
    try:
        version = client.get("/api/version")["version"]
    except (UnreachableError, ApiError, KeyError) as error:
        return [found("server", "error", str(error).partition(": start one")[0], [client.url])]
    findings = [found("server", "ok", f"speaks as Ollama {version}", [client.url])]
    checks = {
        "nodes": _nodes,
        "coordinator": _coordinator,
        "models": _models,
        "replicas": _replicas,
        "monitoring": _monitoring,
        "keys": _keys,
    }
    return findings + [finding for name, check in checks.items() for finding in _tried(name, check, client)]


def _tried(name: str, check: Callable[[Client], list[Finding]], client: Client) -> list[Finding]:
    """Return what a check finds, an error where the server does not answer it."""
    try:
        return check(client)
    except (UnreachableError, ApiError, KeyError) as error:
        said = f"no answer: {error}".removesuffix(KEY_HINT)
        finding = found(name, "error", said)
        refused = isinstance(error, ApiError) and error.status in _REFUSED
        return [replace(finding, remedy=_KEY_REMEDY) if refused else finding]


def _nodes(client: Client) -> list[Finding]:
    """Return how each node does; one that was taken out is no fault."""
    findings = []
    for node in client.get(f"{_AT}/health")["nodes"]:
        faults = "; ".join(node.get("faults") or [])
        well = node["status"] in ("online", "left") and not faults
        findings.append(found("nodes", "ok" if well else "error", faults or node["status"], [node["id"]]))
    return findings


def _coordinator(client: Client) -> list[Finding]:
    """Return whether there is exactly one."""
    count = client.get(f"{_AT}/status")["coordinator_nodes"]
    return [found("coordinator", "ok" if count == 1 else "error", count)]


def _models(client: Client) -> list[Finding]:
    """Return the models that are in memory, and over how many nodes each lies."""
    models = client.get(f"{_AT}/model/list")["models"]
    if not models:
        return [found("models", "warning", "none is in memory")]
    return [
        found(
            "models",
            "ok" if model.get("state", "ready") in ("ready", "loading") else "error",
            f"{model['name']} {model.get('state', 'ready')}, shards: {model.get('shards', 1)}",
            model["nodes"],
        )
        for model in models
    ]


def _replicas(client: Client) -> list[Finding]:
    """Return how many replicas requests are balanced over, and whether all are well."""
    status = client.get(f"{_PROXY}/status")
    well, count = status["healthy_instances"], status["instance_count"]
    return [found("replicas", "ok" if well == count else "error", f"{well} of {count}, {status['load_balancer']}")]


def _monitoring(client: Client) -> list[Finding]:
    """Return whether what is counted can be read."""
    counts = client.has("/metrics")
    return [found("monitoring", "ok" if counts else "error", "/metrics" if counts else "no /metrics")]


def _keys(client: Client) -> list[Finding]:
    """Return whether somebody without a key may come in, which only this host's own may."""
    host = urlsplit(client.url).hostname or ""
    try:
        Client(client.url).impatient(_PATIENCE_S).get("/api/tags")
    except ApiError as error:
        if error.status in _REFUSED:
            return [found("keys", "ok", "asked for")]
        raise
    is_local = host.startswith(_LOOPBACK)
    return [found("keys", "ok" if is_local else "warning", f"none asked for at {host}")]
