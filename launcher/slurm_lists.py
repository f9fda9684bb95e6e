"""Read the lists that Slurm writes in short: names of nodes such as n[1-3,07], and a count for each such as 2(x3),1."""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import product

from ollampi.mpiruntime.errors import ConfigError, quoted

_NAME = re.compile(r"[A-Za-z0-9][\w.-]*")  # no option of mpirun or ssh begins so
_AGAIN = "submit the job again"


def names_in(environ: Mapping[str, str], variable: str) -> list[str]:
    """Return the names in a variable, none where it is not set; raise ConfigError for what is no name of a node."""
    names: list[str] = []
    for word in re.findall(r"(?:\[[^\]]*\]|[^,\[\]])+", environ.get(variable, "")):
        parts = [_choices(part) for part in re.findall(r"\[[^\]]*\]|[^\[\]]+", word)]
        names += ["".join(each) for each in product(*parts)]
    for name in names:
        if not _NAME.fullmatch(name):
            raise ConfigError(
                f"{variable} is {quoted(environ[variable])}, in which {quoted(name)} is no name of a node; {_AGAIN}"
            )
    return names


def counts_in(environ: Mapping[str, str], variable: str) -> list[int]:
    """Return the counts in a variable, none where it is not set; raise ConfigError for what is no count."""
    counts: list[int] = []
    for part in filter(None, environ.get(variable, "").split(",")):
        match = re.fullmatch(r"([0-9]+)(?:\(x([0-9]+)\))?", part)
        if match is None:
            raise ConfigError(f"{variable} is {quoted(environ[variable])}; Slurm writes such as 2(x3),1: {_AGAIN}")
        counts += [int(match[1])] * int(match[2] or 1)
    return counts


def _choices(part: str) -> list[str]:
    """Return what a part of a name stands for; the digits of a range keep their zeros."""
    if not part.startswith("["):
        return [part]
    found = []
    for piece in part[1:-1].split(","):
        first, dash, last = piece.partition("-")
        if dash and first.isdigit() and last.isdigit():
            found += [f"{number:0{len(first)}}" for number in range(int(first), int(last) + 1)]
        else:
            found.append(piece)
    return found
