"""Offer the commands that look at the replicas behind a server's address."""

from __future__ import annotations

from collections.abc import Callable

import click

from ollampi.launcher.cli_cluster import api_option, interval_option, watch_option
from ollampi.launcher.cli_options import json_option, json_text, watching
from ollampi.launcher.client import Client, Json
from ollampi.launcher.cluster_words import instances_text, metrics_text, proxy_status_text

_AT = "/api/v1/proxy"


@click.group()
def proxy() -> None:
    """Look at the replicas of models that share the requests of a server."""


@proxy.command()
@json_option
@api_option
def status(client: Client, as_json: bool) -> None:
    """Show how many replicas are well."""
    _show(client, "status", proxy_status_text, as_json)


@proxy.command()
@json_option
@api_option
def instances(client: Client, as_json: bool) -> None:
    """List the replicas with their requests."""
    _show(client, "instances", lambda answer: instances_text(answer["instances"]), as_json)


@proxy.command()
@watch_option
@interval_option
@json_option
@api_option
def metrics(client: Client, watch: bool, interval: float, as_json: bool) -> None:
    """Show what was asked of the replicas since the server started."""
    _show(client, "metrics", metrics_text, as_json, interval if watch else None)


def _show(
    client: Client, name: str, words: Callable[[Json], str], as_json: bool, interval_s: float | None = None
) -> None:
    """Print an answer, as JSON or in words, once or again and again."""
    watching(lambda: (json_text if as_json else words)(client.get(f"{_AT}/{name}")), interval_s)
