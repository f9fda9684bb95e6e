"""Offer the commands that list, describe, copy, remove and unload models."""

import click

from ollampi.launcher.cli_options import host_option, json_option, model_argument, print_json
from ollampi.launcher.client import ApiError, Client, Json
from ollampi.launcher.words import human_size, human_time, one_line, printable, processor, show_text, table
from ollampi.mpiruntime.errors import ConfigError

_ONE_PART = "only one of '--license', '--modelfile', '--parameters', '--system', or '--template' can be specified"


@click.command("list")
@click.argument("start", metavar="[FILTER]", default="")
@json_option
@host_option
def list_models(client: Client, start: str, as_json: bool) -> None:
    """List the models whose names begin with FILTER (also: ls)."""
    models = [model for model in _models(client, "/api/tags") if model["name"].lower().startswith(start.lower())]
    if as_json:
        print_json({"models": models})
        return
    rows = [("NAME", "ID", "SIZE", "MODIFIED")]
    for model in models:
        size = human_size(model.get("size") or 0)
        rows.append((one_line(model["name"]), _short_id(model), size, human_time(model.get("modified_at") or "")))
    click.echo(table(rows), nl=False)


@click.command()
@click.argument("start", metavar="[FILTER]", default="")
@json_option
@host_option
def ps(client: Client, start: str, as_json: bool) -> None:
    """List the loaded models whose names begin with FILTER."""
    models = [model for model in _models(client, "/api/ps") if model["name"].startswith(start)]
    if as_json:
        print_json({"models": models})
        return
    rows = [("NAME", "ID", "SIZE", "PROCESSOR", "CONTEXT", "UNTIL")]
    for model in models:
        size, context = human_size(model.get("size") or 0), str(model.get("context_length") or "")
        until = human_time(model.get("expires_at") or "")
        until = "Stopping..." if until.endswith(" ago") else until
        rows.append((one_line(model["name"]), _short_id(model), size, processor(model), context, until))
    click.echo(table(rows), nl=False)


@click.command()
@model_argument()
@click.option("--license", "parts", flag_value="license", multiple=True, help="Print only the license.")
@click.option("--modelfile", "parts", flag_value="modelfile", multiple=True, help="Print only the Modelfile.")
@click.option("--parameters", "parts", flag_value="parameters", multiple=True, help="Print only the parameters.")
@click.option("--system", "parts", flag_value="system", multiple=True, help="Print only the system message.")
@click.option("--template", "parts", flag_value="template", multiple=True, help="Print only the template.")
@click.option("-v", "--verbose", is_flag=True, help="Print every fact, and the tensors.")
@json_option
@host_option
def show(client: Client, model: str, parts: tuple[str, ...], verbose: bool, as_json: bool) -> None:
    """Describe a model."""
    if len(set(parts)) > 1:
        raise ConfigError(_ONE_PART)
    if as_json and parts:
        raise ConfigError(f"--json prints every part, and --{parts[0]} only one: give one of them")
    answer = client.post("/api/show", {"model": model, "verbose": verbose})
    if as_json:
        print_json(answer)
    elif not parts:
        click.echo(printable(show_text(answer, verbose)))
    else:
        text = answer.get(parts[0]) or ""
        click.echo(text if isinstance(text, str) else "\n".join(text))


@click.command()
@model_argument()
@host_option
def stop(client: Client, model: str) -> None:
    """Unload a model."""
    try:
        _unload(client, model)
    except ApiError as error:
        if error.status == 404:
            raise ConfigError(f'couldn\'t find model "{model}" to stop') from error
        raise


@click.command()
@model_argument("source")
@click.argument("destination")
@host_option
def cp(client: Client, source: str, destination: str) -> None:
    """Give a model a second name."""
    client.command("POST", "/api/copy", {"source": source, "destination": destination})
    click.echo(f"copied '{source}' to '{destination}'")


@click.command()
@model_argument("models", nargs=-1)
@host_option
def rm(client: Client, models: tuple[str, ...]) -> None:
    """Remove models, unloading them first."""
    for model in models:
        try:
            _unload(client, model)
        except ApiError as error:
            if error.status != 404:  # of a model that is not there, the removal says so
                click.echo(f"Warning: unable to stop model '{model}': {error}", err=True)
        client.command("DELETE", "/api/delete", {"model": model})
        click.echo(f"deleted '{model}'")


def _unload(client: Client, model: str) -> None:
    client.post("/api/generate", {"model": model, "keep_alive": 0})


def _models(client: Client, path: str) -> list[Json]:
    return client.get(path).get("models") or []


def _short_id(model: Json) -> str:
    return one_line(str(model.get("digest") or "")).removeprefix("sha256:")[:12]
