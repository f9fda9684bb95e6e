"""Offer `run`: one answer, or a conversation."""

import json
import os
import shutil
import sys
from pathlib import Path

import click

from ollampi.launcher.cli_options import INTERRUPTED, host_option, insecure_option, model_argument, moves, write
from ollampi.launcher.cli_transfer import shown_model
from ollampi.launcher.client import Client, Json
from ollampi.launcher.home import home
from ollampi.launcher.repl import THINK_LEVELS, Lines, Repl, Settings
from ollampi.launcher.screen import Screen, show_answer
from ollampi.launcher.terminal import PlainLines, TerminalLines
from ollampi.launcher.words import timings
from ollampi.mpiruntime.errors import ConfigError

_THINK: dict[str, bool | str] = {"true": True, "false": False, **{level: level for level in THINK_LEVELS}}


@click.command()
@model_argument()
@click.argument("prompt", nargs=-1)
@click.option("--keepalive", metavar="DUR", help="Keep the model this long afterwards: 5m, 1h30m, 0, -1 (for ever).")
@click.option("--verbose", is_flag=True, help="Print timings after the answer.")
@click.option("--format", "form", metavar="FMT", help="Form of the answer: json, or a JSON schema.")
@click.option(
    "--think", type=click.Choice(list(_THINK)), is_flag=False, flag_value="true", help="Let the model reason first."
)
@click.option("--hidethinking", is_flag=True, help="Do not print the reasoning.")
@click.option("--nowordwrap", is_flag=True, help="Do not break lines between words.")
@click.option("--truncate", type=bool, help="Of embedding models: cut what is too long, or refuse it.  [default: true]")
@click.option("--dimensions", type=int, help="Of embedding models: how many numbers to keep.")
@insecure_option
@host_option
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
    truncate: bool | None,
    dimensions: int | None,
    insecure: bool,
) -> None:
    """Answer PROMPT, or hold a conversation when there is none.

    What is piped in is the prompt too, after PROMPT if there is one. A model that is not there is pulled first. A
    model that only embeds prints the numbers.
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
    capabilities = _capabilities(client, model, insecure)
    embeds = "embedding" in capabilities and "completion" not in capabilities
    if not prompt and sys.stdin.isatty() and not embeds:
        Repl(client, settings, _typed_lines(), write).run()
        return
    piped = "" if sys.stdin.isatty() else sys.stdin.read()
    text = "\n\n".join(filter(None, [" ".join(prompt), piped]))
    if embeds:
        _embed(client, settings, text, {"truncate": truncate, "dimensions": dimensions})
    else:
        _answer_once(client, settings, text)


def _capabilities(client: Client, model: str, insecure: bool) -> list[str]:
    """Return what a model can do, after a pull where the server does not have it."""
    return shown_model(client, model, insecure).get("capabilities") or []


def _embed(client: Client, settings: Settings, text: str, options: Json) -> None:
    if not text:
        raise ConfigError(f'{settings.model} only embeds: give it a text, ollampi run {settings.model} "your text"')
    chosen = {name: value for name, value in options.items() if value is not None}
    kept = {} if settings.keep_alive is None else {"keep_alive": settings.keep_alive}
    answer = client.post("/api/embed", {"model": settings.model, "input": text, **kept, **chosen})
    click.echo(json.dumps((answer.get("embeddings") or [[]])[0]))


def _typed_lines() -> Lines:
    if not moves(sys.stdout):
        return PlainLines()
    folder = home(os.environ)
    return TerminalLines(folder / ".ollama" / "history" if folder else Path(os.devnull))


def _answer_once(client: Client, settings: Settings, prompt: str) -> None:
    pieces = client.stream("/api/generate", {**settings.request(), "prompt": prompt})
    answer = show_answer(pieces, Screen(write, settings.width, settings.hide_thinking))
    if answer.interrupted:
        sys.exit(INTERRUPTED)
    if settings.verbose:
        click.echo(timings(answer.final), nl=False, err=True)


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
