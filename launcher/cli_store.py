"""Look after the model store of this machine from the command line, without a server."""

import sys

import click

from ollampi.launcher import verify as verifying


@click.command()
@click.argument("models", nargs=-1)
@click.option("--store", metavar="PATH", help="The model store.  [default: OLLAMA_MODELS, or ~/.ollama/models]")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object for each blob.")
def verify(models: tuple[str, ...], store: str | None, as_json: bool) -> None:
    """Read all blobs of MODELS, or of all models, in the store of this machine, and compare them with their digests.

    Ends with status 1 where one is missing or damaged; pulling its model again repairs it.
    """
    damaged = False
    for finding in verifying.findings(models, store):
        damaged |= finding.state != "ok"
        click.echo(verifying.line(finding, as_json))
    sys.exit(1 if damaged else 0)
