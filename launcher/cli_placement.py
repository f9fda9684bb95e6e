"""Offer the commands that place models on the nodes of a cluster."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import quote

import click

from ollampi.launcher.cli_options import Decorator, json_option, model_names, moves, print_json, server_option
from ollampi.launcher.cli_transfer import shown_model
from ollampi.launcher.client import Client, Json
from ollampi.launcher.cluster_words import info_text, models_text, partition_line, shard_lines
from ollampi.launcher.words import one_line

_AT = "/api/cluster"
_STRATEGIES = ("auto", "memory-optimized", "speed-optimized", "balanced")
_api_option = server_option("--api-url", "--host")


def _model_option(help_text: str) -> Decorator:
    option: Decorator = click.option("--model", required=True, shell_complete=model_names, help=help_text)
    return option


@click.group()
def model() -> None:
    """Load, list, describe and unload the models of a cluster."""


@model.command()
@_model_option("The model.")
@click.option("--distributed", is_flag=True, help="Cut it over nodes: over all, unless --shards or --node-ids say.")
@click.option("--shards", metavar="N", type=int, help="Into how many shards to cut it, or each replica.")
@click.option("--replicas", metavar="N", type=int, help="How many copies, each on nodes of its own.")
@click.option("--streams", metavar="N", type=int, help="Answers at a time; chooses replicas where not given.")
@click.option("--strategy", type=click.Choice(_STRATEGIES), help="What to spare: memory, time, or some of both.")
@click.option("--node-ids", metavar="ID,...", default="", help="The nodes; without --distributed each holds it whole.")
@click.option("--context", metavar="N", type=int, help="Tokens of a text, where engine.context_length is less.")
@click.option("--keep-alive", metavar="TIME", help="How long it stays idle: 10m, 1h; -1: for ever.")
@json_option
@_api_option
def load(
    client: Client,
    model: str,
    distributed: bool,
    shards: int | None,
    replicas: int | None,
    streams: int | None,
    strategy: str | None,
    node_ids: str,
    context: int | None,
    keep_alive: str | None,
    as_json: bool,
) -> None:
    """Load a model, after a pull where the server does not have it, and say which node holds what."""
    nodes = [name.strip() for name in node_ids.split(",") if name.strip()]
    wanted: dict[str, Any] = {"distributed": distributed or None, "shards": shards, "strategy": strategy}
    wanted |= {"replicas": replicas, "node_ids": nodes or None, "context": context, "keep_alive": keep_alive}
    wanted |= {"streams": streams}
    body = {"model": model} | {name: value for name, value in wanted.items() if value is not None}
    say: Callable[[str], None] = (lambda text: None) if as_json else (lambda text: click.echo(text, nl=False))
    say(_loading(client, model, body))
    shown_model(client, model, insecure=False)
    say("Downloading model if needed... done\n")
    answer = _follow(client, body)
    if as_json:
        print_json(answer)
        return
    info = client.get(f"{_AT}/model/info?model={quote(model, safe='')}")
    say(partition_line(info) + "".join(shard_lines(info)))
    say("Model loaded and ready for inference\n")


@model.command("list")
@json_option
@_api_option
def list_placements(client: Client, as_json: bool) -> None:
    """List the loaded models and their nodes."""
    answer = client.get(f"{_AT}/model/list")
    if as_json:
        print_json(answer)
    else:
        click.echo(models_text(answer["models"]), nl=False)


@model.command()
@_model_option("A model that is loaded.")
@json_option
@_api_option
def info(client: Client, model: str, as_json: bool) -> None:
    """Show how a model is placed, why, and what each node holds."""
    answer = client.get(f"{_AT}/model/info?model={quote(model, safe='')}")
    if as_json:
        print_json(answer)
    else:
        click.echo(info_text(answer), nl=False)


@model.command()
@_model_option("A model that is loaded, and not at work.")
@json_option
@_api_option
def unload(client: Client, model: str, as_json: bool) -> None:
    """Unload a model from all nodes."""
    answer = client.post(f"{_AT}/model/unload", {"model": model})
    if as_json:
        print_json(answer)
    else:
        click.echo(f"Model {one_line(model)} unloaded")


def _loading(client: Client, name: str, body: Mapping[str, Any]) -> str:
    """Return the line that a load begins with; it has a number of nodes where that is sure before the load."""
    if not (body.get("distributed") or (body.get("shards") or 1) > 1):
        return f"Loading {one_line(name)}...\n"
    count = (body.get("shards") or 0) * (body.get("replicas") or 1) or len(body.get("node_ids") or [])
    if not count and body.get("strategy", "auto") == "auto":  # all that hold weights
        count = sum(node["role"] != "coordinator" for node in client.get(f"{_AT}/nodes")["nodes"])
    across = f" across {count} node{'' if count == 1 else 's'}" if count else ""
    return f"Loading {one_line(name)} in distributed mode{across}...\n"


def _follow(client: Client, body: Json) -> Json:
    """Return the answer to a load, and show on a terminal how far it is."""
    last: Json = {}
    for last in client.stream(f"{_AT}/model/load", body):
        if last["status"] == "loading" and moves(sys.stderr) and last.get("total"):
            click.echo(f"\rread {100 * last.get('completed', 0) // last['total']} %\r", nl=False, err=True)
    return last
