"""Offer the commands of the cluster: start, look at, diagnose and leave it; the models on it are in cli_placement."""

from __future__ import annotations

from collections.abc import Callable

import click

from ollampi.launcher import cli_placement
from ollampi.launcher.cli_options import json_option, json_text, print_json, server_option, watching
from ollampi.launcher.cli_serve import launch, restarts_option, serve
from ollampi.launcher.client import Client, Json
from ollampi.launcher.cluster_words import diagnosis_text, health_text, models_text, nodes_text, status_text
from ollampi.launcher.readers import level

AT = "/api/cluster"
api_option = server_option("--api-url", "--host")
watch_option = click.option("--watch", is_flag=True, help="Show it anew until Ctrl-C.")
interval_option = click.option(
    "--interval",
    metavar="SECONDS",
    type=click.FloatRange(0.1, 3600),
    default=5,
    show_default=True,
    help="With --watch.",
)


@click.group()
def cluster() -> None:
    """Start and look at a cluster: one job, whose nodes are its ranks."""


@cluster.command(context_settings={"ignore_unknown_options": True})
@click.option("-n", "ranks", metavar="N", type=int, help="Number of ranks, as `ollampi launch` takes it.")
@click.option("--hostfile", metavar="PATH", help="Start on the hosts in this file, not only on this one.")
@click.option("--log-level", metavar="LEVEL", help="As the setting logging.level: debug, info, warning, error.")
@click.option("--enable-compression", is_flag=True, help="As exchange.communication_strategy=compressed.")
@click.option("--debug-network", is_flag=True, help="As logging.network=true: what the ranks exchange is logged.")
@click.option("--dry-run", is_flag=True, help="With -n or --hostfile: print the line and stop.")
@restarts_option
@click.argument("overrides", nargs=-1, type=click.UNPROCESSED)
def start(
    ranks: int | None,
    hostfile: str | None,
    log_level: str | None,
    enable_compression: bool,
    debug_network: bool,
    dry_run: bool,
    restarts: int | None,
    overrides: tuple[str, ...],
) -> None:
    """Start a server: as `ollampi launch` with -n, --hostfile or --restarts, else as `ollampi serve`.

    OVERRIDES are settings such as model=NAME, and options of the server such as --config FILE; `ollampi serve --help`
    lists both.
    """
    settings = [
        f"{key}={value}" for key, value in (level("--log-level", log_level).values if log_level else {}).items()
    ]
    settings += ["exchange.communication_strategy=compressed"] if enable_compression else []
    settings += ["logging.network=true"] if debug_network else []
    given = (*settings, *overrides)  # what is written out wins
    assert launch.callback is not None
    assert serve.callback is not None
    if ranks is None and hostfile is None and restarts is None and not dry_run:
        serve.callback(given)
    else:
        launch.callback(
            ranks=ranks,
            mpirun=None,
            hostfile=hostfile,
            listing=None,
            bind=None,
            dry_run=dry_run,
            restarts=restarts,
            overrides=given,
        )


@cluster.command()
@click.option("--detailed", is_flag=True, help="Show the nodes and models too.")
@watch_option
@interval_option
@json_option
@api_option
def status(client: Client, detailed: bool, watch: bool, interval: float, as_json: bool) -> None:
    """Show what the cluster is like: nodes, discovery, models."""

    def show() -> str:
        """Return the text now."""
        found = _detailed(client) if detailed else client.get(f"{AT}/status")
        if as_json:
            return json_text(found)
        lists = [nodes_text(found["node_list"]), models_text(found["models"])] if detailed else []
        return "\n".join([status_text(found), *lists])

    watching(show, interval if watch else None)


@cluster.command()
@watch_option
@interval_option
@json_option
@api_option
def nodes(client: Client, watch: bool, interval: float, as_json: bool) -> None:
    """List the nodes: roles, states, resources, and the shards that they hold."""
    _show(client, "nodes", lambda answer: nodes_text(answer["nodes"]), watch, interval, as_json)


@cluster.command()
@watch_option
@interval_option
@json_option
@api_option
def health(client: Client, watch: bool, interval: float, as_json: bool) -> None:
    """Show how the nodes do."""
    _show(client, "health", health_text, watch, interval, as_json)


@cluster.command()
@json_option
@api_option
def diagnose(client: Client, as_json: bool) -> None:
    """Look for what slows the cluster down: nodes that are not well, and a network that is too slow.

    The network is what the server measured over MPI when it started: a round trip above 2 ms and a link below 1 Gbit/s
    are warned of.
    """
    answer = client.get(f"{AT}/health")
    if as_json:
        print_json(answer)
    else:
        click.echo(diagnosis_text(answer), nl=False)


@cluster.command()
@click.option(
    "--graceful",
    metavar="[BOOL]",
    is_flag=False,
    flag_value=True,
    default=True,
    type=bool,
    help="Let running requests go on, for at most --timeout; false ends them.  [default: true]",
)
@click.option("--timeout", metavar="SECONDS", type=float, default=60, show_default=True, help="For running requests.")
@click.option("--node-id", metavar="ID", help="One node, whose part others take over.")
@json_option
@api_option
def leave(client: Client, graceful: bool, timeout: float, node_id: str | None, as_json: bool) -> None:
    """Have the server take no new work and end once its running requests are done, or take one node out."""
    body = {"graceful": graceful, "timeout": timeout} | ({} if node_id is None else {"node_id": node_id})
    if graceful and node_id is None and not as_json:
        text = f"The server shall end once its running requests are done, in {timeout:g} s at the latest..."
        click.echo(text, err=True)
    answer = client.post(f"{AT}/leave", body)
    if as_json:
        print_json(answer)
    else:
        click.echo(str(answer["message"]))


def _detailed(client: Client) -> Json:
    """Return the status with all nodes and models."""
    listed = {"node_list": client.get(f"{AT}/nodes")["nodes"], "models": client.get(f"{AT}/model/list")["models"]}
    return {**client.get(f"{AT}/status"), **listed}


def _show(client: Client, name: str, words: Callable[[Json], str], watch: bool, interval: float, as_json: bool) -> None:
    """Print an answer, as JSON or in words, once or again and again."""
    watching(lambda: (json_text if as_json else words)(client.get(f"{AT}/{name}")), interval if watch else None)


cluster.add_command(cli_placement.model)
