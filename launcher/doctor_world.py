"""Run ranks that measure, hear what they tell, and end them where they fall silent."""

from __future__ import annotations

import json
import os
import re
import selectors
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import IO, Any

from ollampi.mpiruntime.doctor_words import MARK
from ollampi.mpiruntime.lifetime import die_with

_END_S, _TERM_S = 10.0, 2.0  # for the end of MPI behind the last line; between SIGTERM and SIGKILL
_AT_ONCE = 16  # hosts that are tried at a time
_MOST_ELSE = 100  # lines
_DULL = re.compile(r"[-=*\s]*|.*Warning: setpgid.*")
_ERROR_CHARACTERS = 200


@dataclass
class Seen:
    """What a world told, in order; status: of mpirun, None where it was ended for its silence; why: its first error.

    others: lines that were printed besides, where Open MPI says what is wrong.
    """

    told: list[dict[str, Any]] = field(default_factory=list)
    status: int | None = None
    why: str = ""
    others: list[str] = field(default_factory=list)

    def all(self, name: str) -> list[dict[str, Any]]:
        """Return all that was told with a field of that name."""
        return [each for each in self.told if name in each]

    def one(self, name: str) -> dict[str, Any] | None:
        """Return the last that was told with a field of that name, None for nothing."""
        return next(iter(reversed(self.all(name))), None)


def watch(line: Sequence[str], environ: Mapping[str, str], silence_s: float) -> Seen:
    """Return what a job tells until it ends, or is ended since it told nothing for so long."""
    parent, seen = os.getpid(), Seen()
    with tempfile.TemporaryFile("w+", errors="replace") as errors:
        with subprocess.Popen(
            line,
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            process_group=0,
            preexec_fn=lambda: die_with(parent),
        ) as child:
            assert child.stdout is not None
            try:
                _hear(child.stdout, seen, silence_s)
                seen.status = _ended(child)
            finally:
                _end(child)
        errors.seek(0)
        seen.why = first_error("\n".join([*seen.others, errors.read()]))
    return seen


def probe(lines: Mapping[str, Sequence[str]], environ: Mapping[str, str], silence_s: float) -> dict[str, str]:
    """Return why no rank starts on a host, by host, "" where one does; lines: of each host, to start one rank."""

    def one(line: Sequence[str]) -> str:
        """Return why nothing was told."""
        seen = watch(line, environ, silence_s)
        if seen.one("began"):
            return ""
        return seen.why or (f"no rank within {silence_s:g} s" if seen.status is None else f"status {seen.status}")

    with ThreadPoolExecutor(min(_AT_ONCE, max(1, len(lines)))) as pool:
        return dict(zip(lines, pool.map(one, lines.values()), strict=True))


def first_error(text: str) -> str:
    """Return the first lines of what mpirun complains of that say something, in one line, "" where none does."""
    said = [line.strip() for line in text.splitlines()]
    said = [line for line in said if not _DULL.fullmatch(line)]
    return " ".join(said)[:_ERROR_CHARACTERS]


def _hear(stream: IO[bytes], seen: Seen, silence_s: float) -> None:
    """Take what is told until the stream ends, or nothing comes for so long."""
    rest, since = b"", time.monotonic()
    with selectors.DefaultSelector() as selector:
        selector.register(stream, selectors.EVENT_READ)
        while (left := since + (_END_S if seen.one("end") else silence_s) - time.monotonic()) > 0:
            if not selector.select(left):
                continue
            piece = os.read(stream.fileno(), 1 << 16)
            *whole, rest = (rest + piece).split(b"\n") if piece else [rest, b""]
            for line in whole:
                if (told := _parsed(line)) is not None:
                    seen.told.append(told)
                    since = time.monotonic()
                elif len(seen.others) < _MOST_ELSE:
                    seen.others.append(line.decode(errors="replace"))
            if not piece:
                return


def _parsed(line: bytes) -> dict[str, Any] | None:
    """Return what a line tells, None for one of somebody else; mpirun may write something before it."""
    _, mark, text = line.decode(errors="replace").partition(MARK)
    try:
        told = json.loads(text) if mark else None
    except ValueError:  # cut by another rank's line
        return None
    return told if isinstance(told, dict) else None


def _ended(child: subprocess.Popen[bytes]) -> int | None:
    """Return the status of a process that ends soon, None for one that does not."""
    try:
        return child.wait(_TERM_S)
    except subprocess.TimeoutExpired:
        return None


def _end(child: subprocess.Popen[bytes]) -> None:
    """End a job: mpirun has a moment to end its ranks on other hosts; those of this one are in its group or their own.

    Ranks die with what started them.
    """
    if child.poll() is None:
        child.send_signal(signal.SIGTERM)
        if _ended(child) is None:
            with suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
