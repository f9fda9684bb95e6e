"""Offer the command line: start a server, and talk to one as Ollama's own commands do.

Only light modules are imported here: `serve` becomes another program, which then takes the second that torch needs.
"""

import json
import os
import shlex
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from ollampi import __version__
from ollampi.launcher import mpi
from ollampi.launcher.address import parse_address
from ollampi.launcher.client import Client, Json
from ollampi.launcher.home import home
from ollampi.launcher.repl import Lines, Repl, Settings
from ollampi.launcher.screen import Screen, show_answer
from ollampi.launcher.settings import chosen
from ollampi.launcher.supervise import TERMINAL, supervise
from ollampi.launcher.terminal import PlainLines, TerminalLines
from ollampi.launcher.waiting import local_size, waiting
from ollampi.launcher.words import human_size, human_time, processor, show_text, table, timings
from ollampi.mpiruntime.errors import ConfigError, OllampiError

_PASS_ON = {"ignore_unknown_options": True}
_ALIASES = {"ls": "list"}
_LEVELS = ("low", "medium", "high", "max")
_THINK: dict[str, bool | str] = {"true": True, "false": False, **{level: level for level in _LEVELS}}
_INTERRUPTED = 130  # what a shell reports for a command that Ctrl-C ended


class _Group(click.Group):
    """Turn our errors into one line and exit code 1, and know the aliases."""

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return the command of that name or alias."""
        return super().get_command(ctx, _ALIASES.get(cmd_name, cmd_name))

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; click prints the error that this makes of ours."""
        try:
            return super().invoke(ctx)
        except OllampiError as error:
            raise click.ClickException(str(error)) from error


def _to_client(ctx: click.Context, _param: click.Parameter, value: str) -> Client:
    name = "OLLAMA_HOST" if ctx.get_parameter_source("client") is ParameterSource.ENVIRONMENT else "--host"
    return Client(parse_address(value, name).url)


_host_option: Callable[[Callable[..., None]], Callable[..., None]] = click.option(
    "--host",
    "client",
    metavar="URL",
    envvar="OLLAMA_HOST",
    default="127.0.0.1:11434",
    show_default=True,
    show_envvar=True,
    callback=_to_client,
    help="The server: host, host:port, :port or http://host:port.",
)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, "-V", "--version", prog_name="ollampi", message="%(prog)s version %(version)s")
def main() -> None:
    """Serve a language model with MPI, behind Ollama's API."""


@main.command(context_settings={**_PASS_ON, "allow_interspersed_args": False})
@click.argument("overrides", nargs=-1, type=click.UNPROCESSED)
def serve(overrides: tuple[str, ...]) -> None:
    """Run one rank of the server, as mpirun does.

    Alone it is a world of one rank; `ollampi launch` starts several. OVERRIDES are settings such as model=NAME.
    """
    os.environ.update(waiting(overrides, local_size(os.environ), os.environ))
    os.execv(sys.executable, [sys.executable, "-m", "ollampi.launcher.serve", *overrides])


@main.command(context_settings=_PASS_ON)
@click.option("-n", "ranks", metavar="N", type=int, default=1, show_default=True, help="Number of ranks.")
@click.option("--mpirun", metavar="PATH", help="The mpirun to use.  [default: the one that fits mpi4py's library]")
@click.option("--hostfile", metavar="PATH", help="Start on the hosts in this file, not only on this one.")
@click.option("--dry-run", is_flag=True, help="Print the line and stop.")
@click.argument("overrides", nargs=-1, type=click.UNPROCESSED)
def launch(ranks: int, mpirun: str | None, hostfile: str | None, dry_run: bool, overrides: tuple[str, ...]) -> None:
    """Start a server of N ranks with mpirun.

    OVERRIDES are settings such as model=NAME. The line is printed before it runs, fit to be pasted into a shell.
    """
    chosen(overrides, os.environ)  # a slip of the pen is one line here, and many once mpirun has started
    found = mpi.detect(mpirun)
    line = mpi.command(found, ranks, [sys.executable, "-m", "ollampi.launcher.serve", *overrides], hostfile)
    added = mpi.environment(found, os.geteuid() == 0, os.environ, hostfile)
    added |= {} if hostfile else waiting(overrides, ranks, os.environ)
    mpi.link_library(found, os.environ)
    assignments = [f"{name}={shlex.quote(value)}" for name, value in added.items()]
    click.echo(" ".join([*assignments, shlex.join(line)]), err=not dry_run)
    if not dry_run:
        sys.exit(supervise(line, {**os.environ, **added, TERMINAL: "1" if sys.stderr.isatty() else ""}))


@main.command(context_settings={**_PASS_ON, "allow_interspersed_args": False})
@click.argument("model")
@click.argument("options", nargs=-1, type=click.UNPROCESSED)
def plan(model: str, options: tuple[str, ...]) -> None:
    """Print the memory and the exchange that a model will take, from its config.json alone.

    OPTIONS: ranks=N, hosts=N, memory=SIZE (of each host), ctx=N, dtype=…, quantize=…, cache_dtype=…, experts=…
    """
    os.execv(sys.executable, [sys.executable, "-m", "ollampi.launcher.plan", model, *options])


@main.command("list")
@_host_option
def list_models(client: Client) -> None:
    """List the models (also: ls)."""
    rows = [("NAME", "ID", "SIZE", "MODIFIED")]
    for model in client.get("/api/tags").get("models") or []:
        size = human_size(model.get("size") or 0)
        rows.append((model["name"], _short_id(model), size, human_time(model.get("modified_at") or "")))
    click.echo(table(rows), nl=False)


@main.command()
@_host_option
def ps(client: Client) -> None:
    """List the loaded models."""
    rows = [("NAME", "ID", "SIZE", "PROCESSOR", "CONTEXT", "UNTIL")]
    for model in client.get("/api/ps").get("models") or []:
        size, context = human_size(model.get("size") or 0), str(model.get("context_length") or "")
        until = human_time(model.get("expires_at") or "")
        rows.append((model["name"], _short_id(model), size, processor(model), context, until))
    click.echo(table(rows), nl=False)


@main.command()
@click.argument("model")
@click.option("--license", "parts", flag_value="license", multiple=True, help="Print only the license.")
@click.option("--modelfile", "parts", flag_value="modelfile", multiple=True, help="Print only the Modelfile.")
@click.option("--parameters", "parts", flag_value="parameters", multiple=True, help="Print only the parameters.")
@click.option("--system", "parts", flag_value="system", multiple=True, help="Print only the system message.")
@click.option("--template", "parts", flag_value="template", multiple=True, help="Print only the template.")
@click.option("-v", "--verbose", is_flag=True, help="Print every fact, and the tensors.")
@_host_option
def show(client: Client, model: str, parts: tuple[str, ...], verbose: bool) -> None:
    """Describe a model."""
    if len(set(parts)) > 1:
        raise click.UsageError(f"--{' and --'.join(sorted(set(parts)))} exclude each other: give one of them")
    answer = client.post("/api/show", {"model": model, "verbose": verbose})
    if not parts:
        click.echo(show_text(answer, verbose))
        return
    text = answer.get(parts[0]) or ""
    click.echo(text if isinstance(text, str) else "\n".join(text))


@main.command()
@click.argument("model")
@_host_option
def stop(client: Client, model: str) -> None:
    """Unload a model."""
    client.post("/api/generate", {"model": model, "keep_alive": 0})


@main.command()
@click.argument("model")
@click.argument("prompt", nargs=-1)
@click.option("--keepalive", metavar="DUR", help="Keep the model this long afterwards: 5m, 1h30m, 0, -1 (for ever).")
@click.option("--verbose", is_flag=True, help="Print timings after the answer.")
@click.option("--format", "form", metavar="FMT", help="Form of the answer: json, or a JSON schema.")
@click.option(
    "--think", type=click.Choice(list(_THINK)), is_flag=False, flag_value="true", help="Let the model reason first."
)
@click.option("--hidethinking", is_flag=True, help="Do not print the reasoning.")
@click.option("--nowordwrap", is_flag=True, help="Do not break lines between words.")
@_host_option
def run(
    client: Client,
    model: str,
    prompt: tuple[str, ...],
    keepalive: str | None,
    verbose: bool,
    form: str | None,
    think: str | None,
    hidethinking: bool,
    nowordwrap: bool,
) -> None:
    """Answer PROMPT, or hold a conversation when there is none.

    What is piped in is the prompt too, after PROMPT if there is one.
    """
    settings = Settings(
        model,
        format=_parse_format(form),
        think=None if think is None else _THINK[think],
        keep_alive=_parse_keep_alive(keepalive),
        verbose=verbose,
        width=0 if nowordwrap or not sys.stdout.isatty() else shutil.get_terminal_size().columns,
        hide_thinking=hidethinking,
    )
    if not prompt and sys.stdin.isatty():
        Repl(client, settings, _typed_lines(), _write).run()
        return
    piped = "" if sys.stdin.isatty() else sys.stdin.read()
    _answer_once(client, settings, "\n\n".join(filter(None, [" ".join(prompt), piped])))


def _typed_lines() -> Lines:
    if not sys.stdout.isatty():
        return PlainLines()
    folder = home(os.environ)
    return TerminalLines(folder / ".ollama" / "history" if folder else Path(os.devnull))


def _answer_once(client: Client, settings: Settings, prompt: str) -> None:
    pieces = client.stream("/api/generate", {**settings.request(), "prompt": prompt})
    answer = show_answer(pieces, Screen(_write, settings.width, settings.hide_thinking))
    if answer.interrupted:
        sys.exit(_INTERRUPTED)
    if settings.verbose:
        click.echo(timings(answer.final), nl=False, err=True)


def _write(text: str) -> None:
    click.echo(text, nl=False)  # flushes, so that pieces show as they come


def _short_id(model: Json) -> str:
    return str(model.get("digest") or "").removeprefix("sha256:")[:12]


def _parse_format(text: str | None) -> str | Json | None:
    if text is None or not text.lstrip().startswith("{"):
        return text
    try:
        schema: Json = json.loads(text)
    except ValueError as error:
        raise ConfigError(f"--format is neither `json` nor a JSON schema: {error}") from error
    return schema


def _parse_keep_alive(text: str | None) -> str | float | None:
    """Return bare numbers as numbers: the API takes them as seconds, and refuses them as strings."""
    try:
        return text if text is None else float(text)
    except ValueError:
        return text
