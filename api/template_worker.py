"""Render chat templates in a process of its own, under limits: `python -m ollampi.api.template_worker`.

Standard input is a socket: requests come in and answers go out on it, one frame each (wire). The process ends when the
other side closes it. Only Jinja and the standard library are loaded, so it starts quickly and has nothing to give away.
"""

from __future__ import annotations

import json
import resource
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import NoReturn

from jinja2 import Template, TemplateError, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from ollampi.mpiruntime import wire

CPU_S = 0.25  # of one request, compilation included
GROWTH_BYTES = 256 << 20
MAX_OUTPUT_CHARS = 32 << 20
MAX_REASON_CHARS = 200
_KEPT_TEMPLATES = 4


class _Refused(TemplateError):
    """The template itself refused the messages."""


class _Generation(Extension):
    """Takes what stands between generation and endgeneration, which mark an assistant's words for training, as it is.

    As for transformers it is a scope: what is set inside is not seen behind it.
    """

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.Node:
        """Return the body."""
        number = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=number)


def main() -> None:
    """Answer requests until the other side is gone."""
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    signal.signal(signal.SIGPROF, signal.SIG_DFL)  # ends the process, whatever it is busy with
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the other side decides
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    compiled = lru_cache(_KEPT_TEMPLATES)(environment().from_string)
    with socket.socket(fileno=0) as connection:
        try:
            while True:
                wire.send(connection, answer(compiled, wire.receive(connection)))
        except wire.Closed:
            return


def environment() -> ImmutableSandboxedEnvironment:
    """Return a sandbox with the names that transformers offers to templates."""
    sandbox = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _Generation]
    )
    sandbox.filters["tojson"] = _to_json
    sandbox.globals.update(raise_exception=_refuse, strftime_now=_now)
    return sandbox


def answer(compiled: Callable[[str], Template], request: wire.Message) -> wire.Message:
    """Return {"kind", "body"} for {"source", "values"}: values are JSON, body is UTF-8.

    kind is text, or else refused (body says why), syntax, memory, size or failed (body names the exception).
    """
    try:
        values = json.loads(request["values"])
        with limits():
            try:
                template = compiled(request["source"])
            except MemoryError:
                raise
            except Exception:  # Jinja's lexer and Python's compiler raise many
                return _reply("syntax")
            text = template.render(values)
            return _reply("text", text) if len(text) <= MAX_OUTPUT_CHARS else _reply("size")
    except _Refused as e:
        return _reply("refused", str(e))
    except MemoryError:
        return _reply("memory")
    except Exception as e:  # a template can raise whatever its expressions raise
        return _reply("failed", type(e).__name__)


@contextmanager
def limits() -> Iterator[None]:
    """Run the body under the limits: too much CPU time kills the process, too much memory is a MemoryError."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + GROWTH_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (most if soft == resource.RLIM_INFINITY else min(soft, most), hard))
    signal.setitimer(signal.ITIMER_PROF, CPU_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _reply(kind: str, text: str = "") -> wire.Message:
    return {"kind": kind, "body": text.encode()}  # half a surrogate pair, which a template can write, is refused here


def _refuse(message: object) -> NoReturn:
    raise _Refused(str(message)[:MAX_REASON_CHARS].encode(errors="replace").decode())


def _now(format: str) -> str:
    return datetime.now().strftime(format)


def _to_json(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Return JSON without HTML escapes, as chat templates expect and unlike Jinja's own filter."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


if __name__ == "__main__":
    main()
