"""Write man pages from the commands' own help, in the macros of man(7)."""

from __future__ import annotations

import re
from collections.abc import Iterable

import click

from ollampi import __version__

_NOTHING = r"\&"
_WIDE = 1000  # characters: summaries of commands are not cut, since whoever shows the page folds lines
_SIGNS = {"\\": r"\e", "-": r"\-", "'": r"\(aq", "~": r"\(ti", "^": r"\(ha"}


def pages(group: click.Group) -> dict[str, str]:
    """Return the text of every page by its file's name: the group's own, and one for each command at any depth."""
    return {f"{_title(group, name)}.1": page(group, name) for name in ["", *command_names(group)]}


def command_names(group: click.Group) -> list[str]:
    """Return the names of all commands below a group, those of inner groups behind theirs: `cluster status`."""
    names = []
    for name, command in group.commands.items():
        inner = command_names(command) if isinstance(command, click.Group) else []
        names += [name, *(f"{name} {each}" for each in inner)]
    return names


def page(group: click.Group, name: str) -> str:
    """Return the page of a command, of the group where the name is empty; raise KeyError where there is none."""
    context = click.Context(group, info_name=group.name, **group.context_settings)
    command: click.Command = group
    for part in name.split():
        if not isinstance(command, click.Group):
            raise KeyError(name)
        command = command.commands[part]
        context = click.Context(command, context, part, **command.context_settings)
    title, roff = _title(group, name), _Roff(width=_WIDE)
    command.format_help(context, roff)
    above = [name.rpartition(" ")[0]] if name else []
    below = [f"{name} {each}".strip() for each in command.commands] if isinstance(command, click.Group) else []
    also = ", ".join(f"\\fB{_escaped(_title(group, other))}\\fP(1)" for other in [*above, *below])
    summary = _escaped(command.get_short_help_str(200).rstrip("."))
    return (
        f'.TH {_escaped(title.upper())} 1 "" "ollampi {_escaped(__version__)}" "User Commands"\n'
        f".SH NAME\n{_escaped(title)} \\- {summary}\n{roff.getvalue()}.SH SEE ALSO\n{also}\n"
    )


def _title(group: click.Group, name: str) -> str:
    return "-".join([str(group.name), *name.split()])


class _Roff(click.HelpFormatter):
    """Take what click formats as help, and write it in macros."""

    _described = False

    def write_usage(self, prog: str, args: str = "", prefix: str | None = None) -> None:
        self.write(f".SH SYNOPSIS\n\\fB{_escaped(prog)}\\fP {_escaped(args)}\n")

    def write_heading(self, heading: str) -> None:
        self._described = True
        self.write(f".SH {_escaped(heading.upper())}\n")

    def write_paragraph(self) -> None:
        pass

    def write_text(self, text: str) -> None:
        """Write paragraphs, in the section DESCRIPTION where none is open."""
        if not self._described:
            self.write_heading("Description")
        self.write(".PP\n".join(f"{_marked(' '.join(part.split()))}\n" for part in text.split("\n\n") if part.strip()))

    def write_dl(self, rows: Iterable[tuple[str, str]], col_max: int = 30, col_spacing: int = 2) -> None:
        """Write terms with their meanings; the columns are the reader's affair."""
        for term, meaning in rows:
            body = _marked(" ".join(meaning.split())) or _NOTHING
            self.write(f".TP\n\\fB{_escaped(term)}\\fP\n{body}\n")


def _marked(text: str) -> str:
    """Return a text in which what stands in backquotes is bold."""
    return re.sub("`([^`]+)`", r"\\fB\1\\fP", _escaped(text)).replace("`", r"\(ga")


def _escaped(text: str) -> str:
    """Return a text that stands for itself anywhere in a line."""
    escaped = "".join(_SIGNS.get(c, c) if c.isascii() else f"\\[u{ord(c):04X}]" for c in text)
    return f"{_NOTHING}{escaped}" if escaped.startswith(".") else escaped
