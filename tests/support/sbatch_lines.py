"""Read the #SBATCH lines of a script as sbatch does, in its newer and in its older way."""

from __future__ import annotations

from collections.abc import Iterator


def sbatch_words(script: str, old: bool = False) -> list[str]:
    """Return the words of all #SBATCH lines before the first command; ValueError where sbatch would give up.

    old: as until about 2014, when ' did not quote and a # in quotes began a comment.
    """
    found: list[str] = []
    for line in script.split("\n"):
        if line.startswith("#SBATCH"):
            found += _words(line.removeprefix("#SBATCH"), old)
        elif line and not line.startswith("#"):
            break
    return found


def _words(line: str, old: bool) -> Iterator[str]:
    """Yield the words of a line; sbatch blanks out packjob, and hetjob starts another job."""
    if any(each in line.lower() for each in ("packjob", "hetjob")):
        raise ValueError(f"the line {line!r} starts another job")
    at = 0
    while True:
        while at < len(line) and line[at] in " \t\v\f\r":
            at += 1
        if at == len(line) or line[at] == "#":
            return
        if line[at] == ":":
            raise ValueError("unexpected :")
        made, at = _word(line, at, old)
        yield made


def _word(line: str, at: int, old: bool) -> tuple[str, int]:
    """Return the word that begins at a place, and where the next one may begin."""
    made, quote, escaped = "", "", False
    while at < len(line) and (quote or line[at] not in " \t\v\f\r"):
        letter = line[at]
        if escaped:
            made, escaped = made + letter, False
        elif letter == "\\":
            escaped = True
        elif quote and letter == quote:
            quote = ""
        elif not quote and letter in ('"' if old else "\"'"):
            quote = letter
        elif letter == "#" and (old or not quote):
            at = len(line)
        else:
            made += letter
        at += 1
    if quote:
        raise ValueError(f"unmatched {quote}")
    return made, at
