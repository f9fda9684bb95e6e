"""Offer the commands that make models and bring them from one place to another."""

import sys

import click

from ollampi.api.names import parse_name
from ollampi.launcher.address import parse_address
from ollampi.launcher.cli_options import bars, host_option, insecure_option, model_argument
from ollampi.launcher.client import ApiError, Client, Json
from ollampi.launcher.create import read_modelfile, request
from ollampi.launcher.modelfile import MAX_BYTES
from ollampi.mpiruntime.errors import ConfigError


@click.command()
@model_argument()
@click.option("-f", "--file", "path", metavar="PATH", help="The Modelfile, - for the input.  [default: ./Modelfile]")
@click.option("-q", "--quantize", metavar="LEVEL", help="Quantise the weights, to q8_0 or q4_K_M for example.")
@host_option
def create(client: Client, model: str, path: str | None, quantize: str | None) -> None:
    """Make a model from a Modelfile.

    Files that it names, relative to it, are copied to the server: GGUF files, or of a folder the safetensors files and
    what belongs to them.
    """
    if parse_name(model) is None:
        raise ConfigError(f"invalid model name {model!r}: write [host/][namespace/]model[:tag]")
    modelfile, folder = read_modelfile(path, lambda: sys.stdin.buffer.read(MAX_BYTES + 1))
    for warning in modelfile.warnings:
        click.echo(f"Warning: {warning}", err=True)
    shown = bars()
    try:
        fields = request(client, modelfile, folder, shown)
        quantized = {"quantize": quantize} if quantize else {}
        if "from" in fields:
            shown_model(client, fields["from"], insecure=False)
        shown.follow(client.stream("/api/create", {"model": model, **fields, **quantized}))
    finally:
        shown.close()


@click.command()
@model_argument()
@insecure_option
@click.option("--from", "source", metavar="URL", help="Take it from another server of ours: http://host:port.")
@host_option
def pull(client: Client, model: str, insecure: bool, source: str | None) -> None:
    """Have the server fetch a model.

    MODEL is a name in the registry, hf.co/USER/REPOSITORY[:QUANTISATION], or with --from the name on another server.
    """
    fetch(client, model, insecure, source)


@click.command()
@model_argument()
@insecure_option
@host_option
def push(client: Client, model: str, insecure: bool) -> None:
    """Have the server send a model to its registry."""
    bars().follow(client.stream("/api/push", {"model": model, "insecure": insecure}))


def shown_model(client: Client, model: str, insecure: bool) -> Json:
    """Return what the server says of a model, which it fetches where it does not have it."""
    try:
        return client.post("/api/show", {"model": model})
    except ApiError as error:
        if error.status != 404:
            raise
    fetch(client, model, insecure)
    return client.post("/api/show", {"model": model})


def fetch(client: Client, model: str, insecure: bool, source: str | None = None) -> None:
    """Have the server fetch a model, and show how far it is."""
    body: Json = {"model": model, "insecure": insecure}
    if source is not None:
        body["from"] = parse_address(source, "--from").url
    bars().follow(client.stream("/api/pull", body))
