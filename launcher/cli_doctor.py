"""Offer the command that looks whether hosts, network and MPI are fit for a server."""

import json
import math
import os
import sys

import click

from ollampi.launcher.address import parse_address
from ollampi.launcher.cli_serve import hostfile_option, hosts_option, mpirun_option
from ollampi.launcher.client import Client
from ollampi.launcher.doctor import Wish, diagnose
from ollampi.launcher.doctor_checks import failed, lines, objects
from ollampi.launcher.doctor_server import server_findings
from ollampi.launcher.hosts import check_hosts, chosen_hosts, num_ranks, slurm_tasks
from ollampi.mpiruntime.errors import ConfigError


@click.command(context_settings={"ignore_unknown_options": True})
@click.option(
    "-n", "ranks", metavar="N", type=int, help="Number of ranks.  [default: the hosts' slots, Slurm's tasks, else 2]"
)
@mpirun_option
@hostfile_option
@hosts_option
@click.option("--dir", "folder", metavar="FOLDER", help="A folder that the hosts share: its speed, and who sees it.")
@click.option("--model", metavar="MODEL", help="A model, as `ollampi plan` takes it: its files, and whether it fits.")
@click.option(
    "--timeout",
    metavar="SECONDS",
    type=click.FloatRange(1, 3600),
    default=60,
    show_default=True,
    help="How long ranks may be silent.",
)
@click.option("--server", metavar="URL", help="Look at this running server instead; OLLAMA_API_KEY is the key.")
@click.option("--json", "as_json", is_flag=True, help="Print a list of objects, one for each check and host or pair.")
@click.argument("overrides", nargs=-1, type=click.UNPROCESSED)
def doctor(
    ranks: int | None,
    mpirun: str | None,
    hostfile: str | None,
    listing: str | None,
    folder: str | None,
    model: str | None,
    timeout: float,
    server: str | None,
    as_json: bool,
    overrides: tuple[str, ...],
) -> None:
    """Look whether hosts, network and MPI are fit for a server of N ranks.

    A line for each check: ok, warning or error, what it is, its value, and where it is not well the remedy. The status
    is 1 where there is an error. OVERRIDES are settings such as server.port=11500 or exchange.interface=eth1.
    """
    if math.isnan(timeout):  # which is in any range
        raise ConfigError("--timeout is nan; it must be a number of seconds from 1 to 3600")
    if server is not None:
        client = Client(parse_address(server, "--server").url, os.environ.get("OLLAMA_API_KEY", ""))
        findings = server_findings(client)
    else:
        hosts = chosen_hosts(listing, hostfile)
        if hosts is not None:
            check_hosts(hosts)
        elif ranks is None and slurm_tasks(os.environ) is None:
            ranks = 2
        count = num_ranks(hosts, ranks, os.environ)
        findings = diagnose(Wish(count, hosts, mpirun, folder, model, timeout, overrides))
    click.echo(json.dumps(objects(findings), indent=2) + "\n" if as_json else lines(findings), nl=False)
    sys.exit(failed(findings))
