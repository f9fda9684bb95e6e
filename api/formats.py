"""Read what form an answer must have: `format` as Ollama has it, and `options.grammar`, which is ours."""

from __future__ import annotations

import json

from ollampi.api.errors import ApiError, bad_request, shown
from ollampi.mpiruntime.request import Grammar

MAX_GRAMMAR_BYTES = 256 << 10
_ANY_JSON = Grammar("schema", '{"type":"object"}')  # as Ollama's grammar; clients look for keys at once
_OPTION_TEXT = 'option "grammar" must be {"regex": "..."} or {"lark": "..."}'


def parse_format(form: object, grammar: object) -> Grammar | None:
    """Return what `format` and `options.grammar` ask for, None for free text; raise ApiError."""
    wanted = _format(form)
    if grammar is None:
        return wanted
    if wanted is not None:
        raise bad_request('format and option "grammar" exclude each other; leave one of them out')
    return _grammar(grammar)


def _format(form: object) -> Grammar | None:
    """Return what `format` asks for; raise ApiError (500 for what Ollama refuses so)."""
    if form is None or form == "":
        return None
    if form == "json":
        return _ANY_JSON
    if not isinstance(form, dict):
        kind = f'"{shown(form, 40)}"' if isinstance(form, str) else type(form).__name__
        raise ApiError(500, f'invalid format: {kind}; expected "json" or a valid JSON Schema object')
    try:
        text = json.dumps(form, ensure_ascii=False, allow_nan=False)
    except RecursionError:
        raise bad_request("format is nested too deeply; flatten the schema") from None
    except ValueError:
        raise bad_request("format holds a number beyond all bounds; use a smaller one") from None
    return Grammar("schema", _sized(text, "format"))


def _grammar(grammar: object) -> Grammar:
    """Return the regular expression or Lark grammar of `options.grammar`; raise ApiError (400)."""
    if not isinstance(grammar, dict) or len(grammar) != 1:
        raise bad_request(_OPTION_TEXT)
    kind, text = next(iter(grammar.items()))
    if kind not in ("regex", "lark") or not isinstance(text, str):
        raise bad_request(_OPTION_TEXT)
    return Grammar(kind, _sized(text, 'option "grammar"'))


def _sized(text: str, name: str) -> str:
    """Return text that is not too long; raise ApiError (400)."""
    size = len(text.encode(errors="replace"))
    if size > MAX_GRAMMAR_BYTES:
        raise bad_request(f"{name} has {size} bytes, but at most {MAX_GRAMMAR_BYTES} are read; make it smaller")
    return text
