"""Offer the commands about the configuration."""

import os
import sys

import click


@click.group()
def config() -> None:
    """Look at the configuration."""


@config.command(context_settings={"ignore_unknown_options": True})
@click.option("--json", "as_json", is_flag=True, help="Print the settings as JSON.")
@click.argument("overrides", nargs=-1, type=click.UNPROCESSED)
def show(as_json: bool, overrides: tuple[str, ...]) -> None:
    """Print every setting, its value and where that comes from.

    OVERRIDES are what `ollampi serve` would get: settings such as model=NAME, and options such as --config FILE.
    """
    given = [*overrides, *(["--json"] if as_json else [])]
    os.execv(sys.executable, [sys.executable, "-m", "ollampi.launcher.config_show", *given])
