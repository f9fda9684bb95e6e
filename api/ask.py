"""Check what requests for text have in common, whichever wire they came over."""

from __future__ import annotations

from dataclasses import dataclass

from ollampi.api.durations import parse_keep_alive
from ollampi.api.errors import bad_request, shown
from ollampi.api.formats import parse_format
from ollampi.api.model import Model
from ollampi.api.options import Options, parse_options
from ollampi.api.prompt import Window
from ollampi.api.settings import Settings
from ollampi.api.store.catalog import Store
from ollampi.api.wires.ollama_bodies import MAX_TOP_LOGPROBS, AnswerBody
from ollampi.mpiruntime.request import Grammar

_LEVELS = ("low", "medium", "high", "max")


@dataclass(frozen=True)
class Ask:
    """A checked request: `name` is the model as the client wrote it, think is False, True or a level.

    context is what the engine is asked for (None: its own choice); window.context is what the prompt must fit.
    """

    name: str
    model: Model
    options: Options
    window: Window
    context: int | None
    keep_alive_s: float | None
    think: bool | str
    grammar: Grammar | None

    @property
    def template_names(self) -> dict[str, object]:
        """Return the names that the chat template gets besides the messages."""
        if "thinking" not in self.model.capabilities:
            return {}
        level = {"reasoning_effort": self.think} if isinstance(self.think, str) else {}
        return {"enable_thinking": bool(self.think), "thinking": bool(self.think), **level}


def parse_ask(body: AnswerBody, store: Store, settings: Settings, verb: str) -> Ask:
    """Return the checked fields of a request to `verb`; raise ApiError, ModelError."""
    keep_alive_s = parse_keep_alive(body.keep_alive)
    think = _parse_think(body.think)
    if not 0 <= body.top_logprobs <= MAX_TOP_LOGPROBS:
        raise bad_request(f"top_logprobs must be between 0 and {MAX_TOP_LOGPROBS}")
    model = store.find(body.called)
    if "completion" not in model.capabilities:
        raise bad_request(f'"{shown(body.called)}" does not support {verb}')
    if think and "thinking" not in model.capabilities:
        raise bad_request(f'"{shown(body.called)}" does not support thinking')
    given = {name: value for name, value in body.options.items() if value is not None}
    options = parse_options({**model.parameters, **given}, body.logprobs, body.top_logprobs)
    context = wanted_context(options, model, settings)
    return Ask(
        name=body.called,
        model=model,
        options=options,
        window=Window(context or model.context_length, options.keep_tokens, body.truncate, body.shift),
        context=context,
        keep_alive_s=settings.default_keep_alive_s if keep_alive_s is None else keep_alive_s,
        think=think if think is not None else "thinking" in model.capabilities,
        grammar=parse_format(body.format, body.options.get("grammar")),
    )


def wanted_context(options: Options, model: Model, settings: Settings) -> int | None:
    """Return the context that a request asks for, None where nobody says so; no model has more than it was made for."""
    wanted = options.context or settings.context_length
    return min(wanted, model.context_length) if wanted else None


def _parse_think(value: object) -> bool | str | None:
    """Return whether and how hard the model shall think, None where nothing was said; raise ApiError (400)."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str) and value in _LEVELS:
        return value
    got = f'"{shown(value, 40)}"' if isinstance(value, str) else "this type"
    raise bad_request(f'invalid think value: {got} (must be "high", "medium", "low", "max", true, or false)')
