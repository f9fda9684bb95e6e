"""Offer what helps to use the others: completion in the shell, and man pages."""

import shutil
import subprocess
import sys

import click
from click.shell_completion import ShellComplete, get_completion_class

from ollampi.launcher.roff import command_names, page

_SHELLS = ("bash", "zsh", "fish")
_BASH_COLONS = 'COMP_WORDBREAKS="${COMP_WORDBREAKS//:/}"  # a colon is part of a model\'s name\n'


@click.command()
@click.argument("shell", type=click.Choice(_SHELLS))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print a script for completion in a shell.

    It completes commands, options and the names of models.

    For bash: `eval "$(ollampi completion bash)"` in ~/.bashrc. For zsh: the same with zsh in ~/.zshrc, after compinit.
    For fish: `ollampi completion fish > ~/.config/fish/completions/ollampi.fish`.
    """
    made = get_completion_class(shell)
    assert made is not None
    group = ctx.find_root().command
    script = ShellComplete.source(made(group, {}, str(group.name), f"_{str(group.name).upper()}_COMPLETE"))
    click.echo(script.strip() + "\n" + (_BASH_COLONS if shell == "bash" else ""), nl=False)


@click.command()
@click.argument("command", nargs=-1)
@click.pass_context
def man(ctx: click.Context, command: tuple[str, ...]) -> None:
    """Show the man page of a command.

    Behind a pipe it is printed in roff. `python -m ollampi.launcher.man FOLDER` writes all pages.
    """
    group = ctx.find_root().command
    assert isinstance(group, click.Group)
    known = group.get_command(ctx, command[0]) if command else None  # which knows aliases
    name = " ".join([str(known.name), *command[1:]]) if known is not None else " ".join(command)
    if name not in ("", *command_names(group)):
        raise click.UsageError(f"No such command {' '.join(command)!r}.")
    text = page(group, name)
    if sys.stdout.isatty() and shutil.which("man"):
        subprocess.run(["man", "-l", "-"], input=text, text=True, check=False)
    else:
        click.echo(text, nl=False)
