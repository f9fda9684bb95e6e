"""Offer the commands that start a server, or say what one would take."""

import json
import os
import shlex
import sys
from collections.abc import Mapping

import click

from ollampi.launcher import mpi
from ollampi.launcher.binding import Bound, chosen_binding
from ollampi.launcher.documented import documented
from ollampi.launcher.foreign import ROWS
from ollampi.launcher.given import chosen
from ollampi.launcher.hosts import Hosts, check_hosts, chosen_hosts, num_ranks
from ollampi.launcher.keeper_link import KEEPER, SECRET
from ollampi.launcher.kinds import Value
from ollampi.launcher.listening import bound
from ollampi.launcher.schema import ServerConfig
from ollampi.launcher.supervise import TERMINAL, supervise
from ollampi.launcher.waiting import local_size, waiting
from ollampi.mpiruntime.interface import check_interface

_PASS_ON = {"ignore_unknown_options": True}
ranks_option = click.option(
    "-n", "ranks", metavar="N", type=int, help="Number of ranks.  [default: the hosts' slots, Slurm's tasks, else 1]"
)
mpirun_option = click.option(
    "--mpirun", metavar="PATH", help="The mpirun to use.  [default: the one that fits mpi4py's library]"
)
hostfile_option = click.option(
    "--hostfile", metavar="PATH", help="Start on the hosts in this file, not only on this one."
)
hosts_option = click.option(
    "--host", "listing", metavar="A:2,B:2", help="Start on these hosts, with so many ranks on each."
)
restarts_option = click.option(
    "--restarts",
    metavar="N",
    type=click.IntRange(min=0),
    help="Keep the port, and start the ranks again where they end by themselves, N times at most.",
)


class _WithSettings(click.Command):
    """Tell the settings in the help."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write each setting with its default and what it means."""
        with formatter.section("Options of the server, before or between settings"):
            formatter.write_dl(_options())
        with formatter.section("Settings, with their defaults"):
            formatter.write_dl([(f"{each.path}={each.default}", each.meaning) for each in documented()])


def _options() -> list[tuple[str, str]]:
    """Return the options that a server takes, with what they mean."""
    told = [("--config FILE", "settings of a JSON or YAML file; the environment and the command line come before it")]
    for row in ROWS:
        if row.option:
            meaning = "; ".join(filter(None, [", ".join(row.paths) or "means nothing here", row.meaning]))
            told.append((row.option if row.is_switch else f"{row.option} VALUE", meaning))
    return told


@click.command(cls=_WithSettings, context_settings={**_PASS_ON, "allow_interspersed_args": False})
@click.argument("overrides", nargs=-1, type=click.UNPROCESSED)
def serve(overrides: tuple[str, ...]) -> None:
    """Run one rank of the server, as mpirun does.

    Alone it is a world of one rank; `ollampi launch` starts several. OVERRIDES are settings such as model=NAME.
    """
    os.environ.update(waiting(overrides, local_size(os.environ), os.environ))
    os.execv(sys.executable, [sys.executable, "-m", "ollampi.launcher.serve", *overrides])


@click.command(context_settings=_PASS_ON)
@ranks_option
@mpirun_option
@hostfile_option
@hosts_option
@click.option(
    "--bind",
    type=click.Choice([each.value for each in Bound]),
    help="Bind each rank to cores of its own, to a NUMA node, or to nothing.  [default: what the MPI does best]",
)
@click.option("--dry-run", is_flag=True, help="Print the line and stop.")
@restarts_option
@click.argument("overrides", nargs=-1, type=click.UNPROCESSED)
def launch(
    ranks: int | None,
    mpirun: str | None,
    hostfile: str | None,
    listing: str | None,
    bind: str | None,
    dry_run: bool,
    restarts: int | None,
    overrides: tuple[str, ...],
) -> None:
    """Start a server of N ranks with mpirun.

    OVERRIDES are settings such as model=NAME, and options of the server such as --config FILE; `ollampi serve --help`
    lists both. The line is printed before it runs, fit to be pasted into a shell. In a Slurm allocation the ranks are
    on its nodes.
    """
    values = chosen(overrides, os.environ)  # a slip of the pen is one line here, and many once mpirun has started
    hosts = chosen_hosts(listing, hostfile)
    if hosts is not None:
        check_hosts(hosts)
    count = num_ranks(hosts, ranks, os.environ)
    if values.get("cluster.enabled") is False and count > 1:
        click.echo("ollampi: cluster.enabled is false: one rank is started", err=True)
        count = 1
    given = values.get("exchange.interface")
    network = given if isinstance(given, str) else None
    if network is not None and mpi.on_this_host(hosts, os.environ):  # each rank looks on its own host again
        check_interface(network)
    found, binding = mpi.detect(mpirun), chosen_binding(bind, count, hosts, os.environ)
    line = mpi.command(found, count, [sys.executable, "-m", "ollampi.launcher.serve", *overrides], hosts, binding)
    added = mpi.environment(found, os.geteuid() == 0, os.environ, hosts, network, binding)
    added |= waiting(overrides, count, os.environ) if hosts is None else {}
    mpi.link_library(found, os.environ)
    if not dry_run:
        _check_address(values, hosts)
    assignments = [f"{name}={shlex.quote(value)}" for name, value in added.items()]
    click.echo(" ".join([*assignments, shlex.join(line)]), err=not dry_run)
    if dry_run:
        if restarts is not None:
            once = "pasted into a shell this line starts the ranks once; --restarts is the launcher's own"
            click.echo(f"ollampi: {once}", err=True)
        return
    added[TERMINAL] = "1" if sys.stderr.isatty() else ""
    if restarts is None:
        sys.exit(supervise(line, {**os.environ, **added}))
    if found.vendor is mpi.Vendor.OPEN_MPI:  # which takes few variables to other hosts
        line[1:1] = ["-x", KEEPER, "-x", SECRET]
    os.environ.update(added)
    given_to_keeper = json.dumps({"line": line, "overrides": overrides, "restarts": restarts})
    os.execv(sys.executable, [sys.executable, "-m", "ollampi.launcher.keeper", given_to_keeper])


def _check_address(values: Mapping[str, Value], hosts: Hosts | None) -> None:
    """Raise ConfigError where the server's address is taken here, and rank 0 will surely be on this host."""
    if mpi.on_this_host(hosts, os.environ) and "SLURM_JOB_ID" not in os.environ:  # salloc's shell may be elsewhere
        given = {name: values[path] for name in ("host", "port") if (path := f"server.{name}") in values}
        server = ServerConfig(**given)  # type: ignore[arg-type]
        bound(server.host, server.port).close()


@click.command()
@click.argument("model")
@click.argument("options", metavar="[KEY=VALUE]...", nargs=-1)
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON, sizes in bytes.")
def plan(model: str, options: tuple[str, ...], as_json: bool) -> None:
    """Print what memory, exchange and time a model will take.

    Its config.json alone is needed.

    KEYs: ranks=N, hosts=N, shards=N (the rest are replicas), memory=SIZE (of each host), ctx=N, dtype=…, quantize=…,
    cache_dtype=…, experts=…, synchronization_points=…, stream=…, prefetch_factor=…

    of the estimates: streams=N (answers in each replica), prompt=N (tokens of a step), cores=N and gbytes=N (GB/s of
    memory) of each host, gflops=N of each core, latency_us=N and gbit=N between hosts, level=N
    """
    given = [model, *options, *(["--json"] if as_json else [])]
    os.execv(sys.executable, [sys.executable, "-m", "ollampi.launcher.plan", *given])
