"""Offer the commands that start a server, or say what one would take."""

import json
import os
import shlex
import sys

import click

from ollampi.launcher import mpi
from ollampi.launcher.documented import documented
from ollampi.launcher.foreign import ROWS
from ollampi.launcher.given import chosen
from ollampi.launcher.keeper_link import KEEPER, SECRET
from ollampi.launcher.supervise import TERMINAL, supervise
from ollampi.launcher.waiting import local_size, waiting
from ollampi.mpiruntime.interface import check_interface

_PASS_ON = {"ignore_unknown_options": True}


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
@click.option("-n", "ranks", metavar="N", type=int, default=1, show_default=True, help="Number of ranks.")
@click.option("--mpirun", metavar="PATH", help="The mpirun to use.  [default: the one that fits mpi4py's library]")
@click.option("--hostfile", metavar="PATH", help="Start on the hosts in this file, not only on this one.")
@click.option("--dry-run", is_flag=True, help="Print the line and stop.")
@click.option(
    "--restarts",
    metavar="N",
    type=click.IntRange(min=0),
    help="Keep the port, and start the ranks again where they end by themselves, N times at most.",
)
@click.argument("overrides", nargs=-1, type=click.UNPROCESSED)
def launch(
    ranks: int,
    mpirun: str | None,
    hostfile: str | None,
    dry_run: bool,
    restarts: int | None,
    overrides: tuple[str, ...],
) -> None:
    """Start a server of N ranks with mpirun.

    OVERRIDES are settings such as model=NAME, and options of the server such as --config FILE; `ollampi serve --help`
    lists both. The line is printed before it runs, fit to be pasted into a shell.
    """
    values = chosen(overrides, os.environ)  # a slip of the pen is one line here, and many once mpirun has started
    if values.get("cluster.enabled") is False and ranks > 1:
        click.echo("ollampi: cluster.enabled is false: one rank is started", err=True)
        ranks = 1
    given = values.get("exchange.interface")
    network = given if isinstance(given, str) else None
    if network is not None and mpi.on_this_host(hostfile, os.environ):  # each rank looks on its own host again
        check_interface(network)
    found = mpi.detect(mpirun)
    line = mpi.command(found, ranks, [sys.executable, "-m", "ollampi.launcher.serve", *overrides], hostfile)
    added = mpi.environment(found, os.geteuid() == 0, os.environ, hostfile, network)
    added |= {} if hostfile else waiting(overrides, ranks, os.environ)
    mpi.link_library(found, os.environ)
    assignments = [f"{name}={shlex.quote(value)}" for name, value in added.items()]
    click.echo(" ".join([*assignments, shlex.join(line)]), err=not dry_run)
    if dry_run:
        return
    added[TERMINAL] = "1" if sys.stderr.isatty() else ""
    if restarts is None:
        sys.exit(supervise(line, {**os.environ, **added}))
    if found.vendor is mpi.Vendor.OPEN_MPI:  # which takes few variables to other hosts
        line[1:1] = ["-x", KEEPER, "-x", SECRET]
    os.environ.update(added)
    given_to_keeper = json.dumps({"line": line, "overrides": overrides, "restarts": restarts})
    os.execv(sys.executable, [sys.executable, "-m", "ollampi.launcher.keeper", given_to_keeper])


@click.command()
@click.argument("model")
@click.argument("options", metavar="[KEY=VALUE]...", nargs=-1)
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON, sizes in bytes.")
def plan(model: str, options: tuple[str, ...], as_json: bool) -> None:
    """Print what memory and exchange a model will take.

    Its config.json alone is needed.

    KEYs: ranks=N, hosts=N, memory=SIZE (of each host), ctx=N, dtype=…, quantize=…, cache_dtype=…, experts=…,
    synchronization_points=…, stream=…, prefetch_factor=…
    """
    given = [model, *options, *(["--json"] if as_json else [])]
    os.execv(sys.executable, [sys.executable, "-m", "ollampi.launcher.plan", *given])
