"""Render a model's own chat template (Jinja) in a sandbox, with the names that transformers offers to templates."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from ollampi.api.errors import shown
from ollampi.mpiruntime.errors import ModelError, RequestError

MAX_TEMPLATE_CHARS = 1 << 20


class _Refused(TemplateError):
    """The template itself refused the messages."""


class ChatTemplate:
    """A compiled chat template; render is safe to call from several threads."""

    def __init__(self, source: str, bos_token: str, eos_token: str) -> None:
        if len(source) > MAX_TEMPLATE_CHARS:
            raise ModelError(f"the model's chat template has more than {MAX_TEMPLATE_CHARS} characters; shorten it")
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.filters["tojson"] = _to_json
        environment.globals.update(raise_exception=_refuse, strftime_now=_now)
        self._tokens = {"bos_token": bos_token, "eos_token": eos_token}
        try:
            self._template = environment.from_string(source)
        except (TemplateError, RecursionError) as e:
            raise ModelError("the model's chat template cannot be compiled; correct it in the model folder") from e

    def render(self, messages: list[dict[str, Any]], tools: list[Any], **names: object) -> str:
        """Return the prompt text; raise RequestError where the template refuses, ModelError where it fails."""
        values = {**self._tokens, "add_generation_prompt": True, **names}
        try:
            return self._template.render(messages=messages, tools=tools or None, **values)
        except _Refused as e:
            raise RequestError(f"the model's chat template refuses these messages: {shown(str(e))}") from e
        except Exception as e:  # a template can raise whatever its expressions raise
            raise ModelError(f"the model's chat template failed: {type(e).__name__}; correct the template") from e


def _refuse(message: str) -> NoReturn:
    raise _Refused(message)


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
