"""Hold what several commands take: the server, names of models, and how their output is written."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from typing import TextIO

import click
from click.core import ParameterSource

from ollampi.launcher.address import parse_address
from ollampi.launcher.bars import Bars
from ollampi.launcher.client import Client, Json
from ollampi.mpiruntime.errors import OllampiError

Decorator = Callable[[Callable[..., None]], Callable[..., None]]

INTERRUPTED = 130  # what a shell reports for a command that Ctrl-C ended
_COMPLETING_S = 1.0  # how long a shell may wait for names


def _to_client(ctx: click.Context, param: click.Parameter, value: str) -> Client:
    name = " or ".join(param.opts)
    if ctx.get_parameter_source("client") is ParameterSource.ENVIRONMENT:
        name = "OLLAMA_HOST"
    return Client(parse_address(value, name).url, os.environ.get("OLLAMA_API_KEY", ""))


def server_option(*names: str) -> Decorator:
    """Return the option that names the server, under one name or several."""
    return click.option(
        *names,
        "client",
        metavar="URL",
        envvar="OLLAMA_HOST",
        default="127.0.0.1:11434",
        show_default=True,
        show_envvar=True,
        callback=_to_client,
        help="The server: host, host:port, :port or http://host:port.",
    )


host_option = server_option("--host")
json_option: Decorator = click.option("--json", "as_json", is_flag=True, help="Print what the server answers, as JSON.")
insecure_option: Decorator = click.option(
    "--insecure", is_flag=True, help="Let the server use a registry without TLS, or with a certificate nobody knows."
)


def model_names(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
    """Return the server's models that begin so, for the shell; none where it does not answer soon."""
    client = ctx.params.get("client")
    if not isinstance(client, Client):
        return []
    try:
        models = client.impatient(_COMPLETING_S).get("/api/tags").get("models") or []
    except OllampiError:
        return []
    names = [str(model.get("name") or "") for model in models]
    return [name for name in names if name.isprintable() and name.lower().startswith(incomplete.lower())]


def model_argument(name: str = "model", nargs: int = 1) -> Decorator:
    """Return the argument that takes the name of a model, or several."""
    return click.argument(name, nargs=nargs, required=True, shell_complete=model_names)


def write(text: str) -> None:
    """Write a piece of an answer, flushed so that pieces show as they come."""
    click.echo(text, nl=False)


def print_json(answer: Json) -> None:
    """Write an object of the server, its keys in the server's order."""
    click.echo(json_text(answer), nl=False)


def json_text(answer: Json) -> str:
    """Return an object of the server as text, its keys in the server's order; what is no text as JSON escapes it."""
    text = json.dumps(answer, indent=2, ensure_ascii=False)
    return text.encode(errors="backslashreplace").decode() + "\n"


def watching(show: Callable[[], str], interval_s: float | None) -> None:
    """Write what `show` returns, once, or anew every interval_s until Ctrl-C."""
    write(show())
    while interval_s is not None:
        time.sleep(interval_s)
        text = show()
        if moves(sys.stdout):
            click.clear()
        write(text)


def bars() -> Bars:
    """Return what shows progress beside the output; it moves on a terminal that can."""
    return Bars(_write_beside, moves(sys.stderr), _size)


def moves(stream: TextIO) -> bool:
    """Return whether a stream reaches a terminal that moves the cursor."""
    return stream.isatty() and os.environ.get("TERM", "dumb") != "dumb"


def _write_beside(text: str) -> None:
    click.echo(text, nl=False, err=True)


def _size() -> tuple[int, int]:
    """Return the columns and lines of the terminal; some know neither."""
    try:
        columns, lines = os.get_terminal_size(sys.stderr.fileno())
    except OSError:
        columns, lines = 0, 0
    return columns or 80, lines or 24
