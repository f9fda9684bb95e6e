"""Check the `options` of a request: types as Ollama does, ranges so that no value can harm the engine."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields, replace
from typing import Any

from ollampi.api.errors import ApiError, bad_request, shown
from ollampi.mpiruntime.request import Sampling

_INT_LIMIT = 2**31 - 1
_INT64_LIMIT = 2**63 - 1
MIN_CONTEXT = 4
MAX_OPTIONS = 1000
MAX_STOPS = 64
MAX_STOP_CHARS = 1024
MAX_BIASES = 1024
MAX_BIAS = 1000.0

# name: (lowest, highest); what Ollama documents below zero keeps its meaning
_INTEGERS = {
    "num_ctx": (-_INT_LIMIT - 1, _INT_LIMIT),
    "num_batch": (-_INT_LIMIT - 1, _INT_LIMIT),
    "num_gpu": (-_INT_LIMIT - 1, _INT_LIMIT),
    "main_gpu": (-_INT_LIMIT - 1, _INT_LIMIT),
    "num_thread": (-_INT_LIMIT - 1, _INT_LIMIT),
    "draft_num_predict": (-_INT_LIMIT - 1, _INT_LIMIT),
    "num_keep": (-_INT_LIMIT - 1, _INT_LIMIT),
    "seed": (-_INT64_LIMIT - 1, _INT64_LIMIT),
    "num_predict": (-_INT_LIMIT - 1, _INT_LIMIT),
    "top_k": (-_INT_LIMIT - 1, _INT_LIMIT),
    "repeat_last_n": (-1, _INT_LIMIT),
}
_FLOATS = {
    "top_p": (0.0, 1.0),
    "min_p": (0.0, 1.0),
    "typical_p": (0.0, 1.0),
    "temperature": (0.0, 1000.0),
    "repeat_penalty": (1e-6, 1000.0),
    "presence_penalty": (-1000.0, 1000.0),
    "frequency_penalty": (-1000.0, 1000.0),
    "timeout": (0.001, 1e9),  # ours: seconds
}
_BOOLEANS = {"use_mmap"}
_ELSEWHERE = {"grammar"}  # read by formats
OPTIONS_MARK = "x-options"  # in the schema of a field: the name of the schema of options that it holds
_SAMPLING = {f.name for f in fields(Sampling)} - {"seed", "logprobs", "top_logprobs"}  # with logit_bias, which is ours


@dataclass(frozen=True)
class Options:
    """What the options of a request ask for.

    max_tokens None: no limit was asked for. context None: the default. keep_tokens negative: the whole prompt.
    max_drafts None: the server's. timeout_s: after which the request ends unanswered, None for the server's. ignored:
    the names that we do not know.
    """

    sampling: Sampling = field(default_factory=Sampling)
    max_tokens: int | None = None
    context: int | None = None
    keep_tokens: int = 4
    max_drafts: int | None = None
    timeout_s: float | None = None
    stop: list[str] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)

    def with_next_seed(self, place: int) -> Options:
        """Return the options of one more answer, `place` after the first; without a seed the engine draws one."""
        if self.sampling.seed is None:
            return self
        return replace(self, sampling=replace(self.sampling, seed=(self.sampling.seed + place) & _INT64_LIMIT))


def parse_options(given: dict[str, Any], logprobs: bool = False, top_logprobs: int = 0) -> Options:
    """Return the checked options; raise ApiError (500 for a wrong type as Ollama does, 400 for a wrong value)."""
    if len(given) > MAX_OPTIONS:
        raise bad_request(f"options holds {len(given)} names; leave out all but {MAX_OPTIONS}")
    values: dict[str, Any] = {}
    ignored = []
    for name, value in given.items():
        if value is None:
            continue
        if name in _INTEGERS:
            values[name] = _integer(name, value)
        elif name in _FLOATS:
            values[name] = _float(name, value)
        elif name in _BOOLEANS:
            _require(isinstance(value, bool), name, "type boolean")
        elif name == "logit_bias":
            values[name] = _biases(name, value)
        elif name == "stop":
            values[name] = _strings(name, value)
        elif name not in _ELSEWHERE:
            ignored.append(name)
    return _assemble(values, ignored, logprobs, top_logprobs)


def options_schema(of_text: bool) -> dict[str, Any]:
    """Return the JSON schema of `options`, for text or for vectors; null counts as absent."""
    defaults = {f.name: f.default for f in fields(Sampling)} | {"seed": -1, "num_predict": -1}
    defaults["num_keep"] = Options.keep_tokens
    properties: dict[str, dict[str, Any]] = {}
    for name, (low, high) in _FLOATS.items():
        properties[name] = {"type": ["number", "null"], "minimum": low, "maximum": high}
    for name, (first, last) in _INTEGERS.items():
        about = f"a whole number from {first} to {last}; a fraction is cut off"
        bounds = {"exclusiveMinimum": first - 1, "exclusiveMaximum": last + 1}
        properties[name] = {"type": ["number", "null"], "description": about, **bounds}
    for name in properties:
        if name in defaults:
            properties[name]["default"] = defaults[name]
    properties["timeout"]["description"] = "seconds after which the request ends with status 504"
    strings = {"type": "string", "maxLength": MAX_STOP_CHARS}
    properties["stop"] = {"type": ["array", "null"], "items": strings, "maxItems": MAX_STOPS, "default": []}
    properties["use_mmap"] = {"type": ["boolean", "null"], "description": "has no effect"}
    properties["logit_bias"] = {
        "type": ["object", "null"],
        "description": "token ids with what is added to their logits",
        "propertyNames": {"pattern": "^[0-9]{1,9}$"},
        "additionalProperties": {"type": "number", "minimum": -MAX_BIAS, "maximum": MAX_BIAS},
        "maxProperties": MAX_BIASES,
    }
    text = {"type": "string"}
    grammar = {
        "description": 'a regular expression or a Lark grammar, as {"regex": "..."} or {"lark": "..."}',
        "anyOf": [
            *(
                {"type": "object", "properties": {kind: text}, "required": [kind], "additionalProperties": False}
                for kind in ("regex", "lark")
            ),
            {"type": "null"},
        ],
    }
    if of_text:
        properties["grammar"] = grammar
    summary = "what the answer depends on; names that are not here are ignored, and a header Warning tells them"
    return {"type": "object", "description": summary, "properties": properties}


def _assemble(values: dict[str, Any], ignored: list[str], logprobs: bool, top_logprobs: int) -> Options:
    """Return the Options for checked values."""
    seed = values.get("seed", -1)
    sampling = Sampling(
        seed=None if seed == -1 else seed & _INT64_LIMIT,
        logprobs=logprobs,
        top_logprobs=top_logprobs,
        **{name: value for name, value in values.items() if name in _SAMPLING},
    )
    context = values.get("num_ctx")
    limit = values.get("num_predict", -1)
    drafts = values.get("draft_num_predict", -1)
    return Options(
        sampling=sampling,
        max_tokens=limit if limit > 0 else None,
        context=None if context is None else max(context, MIN_CONTEXT),
        keep_tokens=values.get("num_keep", Options.keep_tokens),
        max_drafts=drafts if drafts >= 0 else None,
        timeout_s=values.get("timeout"),
        stop=values.get("stop", []),
        ignored=ignored,
    )


def _require(holds: bool, name: str, kind: str) -> None:
    if not holds:
        raise ApiError(500, f'option "{name}" must be of {kind}')


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _check(name: str, value: float, low: float, high: float) -> None:
    """Raise ApiError (400) unless low <= value <= high."""
    if not low <= value <= high:
        text = shown(f"{value:g}", 30) if isinstance(value, float) else shown(str(value), 30)
        raise bad_request(f'option "{name}" is {text}, but it must be between {low} and {high}')


def _integer(name: str, value: Any) -> int:
    """Return an integer option; a fraction is cut off."""
    _require(_is_number(value), name, "type integer")
    low, high = _INTEGERS[name]
    if isinstance(value, float) and not math.isfinite(value):
        raise bad_request(f'option "{name}" must be a finite number')
    number = int(value)
    if abs(number) > 2 * _INT64_LIMIT:  # do not print hundreds of digits
        raise bad_request(f'option "{name}" is too large; it must be between {low} and {high}')
    _check(name, number, low, high)
    return number


def _float(name: str, value: Any) -> float:
    """Return a float option."""
    _require(_is_number(value), name, "type float32")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise bad_request(f'option "{name}" must be a finite number')
    _check(name, number, *_FLOATS[name])
    return number


def _strings(name: str, value: Any) -> list[str]:
    """Return a list of strings; empty ones are dropped because they would stop every answer at once."""
    _require(isinstance(value, list), name, "type array")
    few = value[: MAX_STOPS + 1]
    _require(all(isinstance(item, str) for item in few), name, "an array of strings")
    if len(few) > MAX_STOPS or any(len(item) > MAX_STOP_CHARS for item in few):
        raise bad_request(f'option "{name}" takes at most {MAX_STOPS} strings of {MAX_STOP_CHARS} characters')
    return [item for item in value if item]


def _biases(name: str, value: Any) -> list[tuple[int, float]]:
    """Return the tokens of an object {token id: bias} with their biases."""
    _require(isinstance(value, dict), name, "type object")
    if len(value) > MAX_BIASES:
        raise bad_request(f'option "{name}" names {len(value)} tokens; leave out all but {MAX_BIASES}')
    biases = []
    for token, bias in value.items():
        _require(
            token.isascii() and token.isdecimal() and len(token) < 10,
            name,
            'type object with token ids for names, such as {"12": -5}',
        )
        _require(_is_number(bias), name, 'type object with numbers, such as {"12": -5}')
        if not -MAX_BIAS <= bias <= MAX_BIAS:
            raise bad_request(f'option "{name}" must hold numbers between {-MAX_BIAS} and {MAX_BIAS}')
        biases.append((int(token), float(bias)))
    return biases
