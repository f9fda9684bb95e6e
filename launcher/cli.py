"""Offer the command line: start a server, and talk to one as Ollama's own commands do.

Only light modules are imported here: `serve` becomes another program, which then takes the second that torch needs.
"""

import sys
from typing import Any

import click

from ollampi import __version__
from ollampi.launcher import (
    cli_cluster,
    cli_config,
    cli_doctor,
    cli_help,
    cli_models,
    cli_proxy,
    cli_run,
    cli_serve,
    cli_slurm,
    cli_store,
    cli_transfer,
)
from ollampi.launcher.cli_options import INTERRUPTED
from ollampi.launcher.foreign import ROWS
from ollampi.mpiruntime.errors import OllampiError

_ALIASES = {"ls": "list", "start": "serve"}
_CLIENT_VARIABLES = (
    ("OLLAMA_HOST", "Where the server listens, and where the commands find it."),
    ("OLLAMA_API_KEY", "Sent to the server as a bearer token."),
)


class _Group(click.Group):
    """Turn our errors into one line and exit code 1, and know the aliases."""

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return the command of that name or alias."""
        return super().get_command(ctx, _ALIASES.get(cmd_name, cmd_name))

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the variables that the commands heed."""
        with formatter.section("Environment"):
            formatter.write_dl([*_CLIENT_VARIABLES, *_server_variables()])

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; click prints the error that this makes of ours."""
        try:
            return super().invoke(ctx)
        except OllampiError as error:
            raise click.ClickException(str(error)) from error
        except KeyboardInterrupt:
            click.echo(err=True)
            sys.exit(INTERRUPTED)


def _server_variables() -> list[tuple[str, str]]:
    """Return the variables that Ollama itself has, and what they are to the server; docs/configuration.md has all."""
    return [
        (row.variable, f"As the setting {', '.join(row.paths)}{f': {row.meaning}' if row.meaning else ''}.")
        for row in ROWS
        if row.is_ollamas and row.variable != "OLLAMA_HOST"
    ]


@click.group("ollampi", cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, "-v", "-V", "--version", prog_name="ollampi", message="%(prog)s version %(version)s")
def main() -> None:
    """Serve a language model with MPI, behind Ollama's API."""


for _command in (
    cli_serve.serve,
    cli_serve.launch,
    cli_serve.plan,
    cli_doctor.doctor,
    cli_run.run,
    cli_transfer.create,
    cli_transfer.pull,
    cli_transfer.push,
    cli_models.list_models,
    cli_models.ps,
    cli_models.show,
    cli_models.stop,
    cli_models.cp,
    cli_models.rm,
    cli_store.verify,
    cli_config.config,
    cli_cluster.cluster,
    cli_proxy.proxy,
    cli_slurm.slurm,
    cli_help.completion,
    cli_help.man,
):
    main.add_command(_command)
