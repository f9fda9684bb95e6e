"""In which syntax models call tools, by family, and which family a chat template belongs to.

Sources of the syntaxes: the chat templates that the families publish, as they stand in llama.cpp's models/templates and
vLLM's examples/tool_chat_template_*.jinja, besides

    Llama 3         llama-models, models/llama3_1/prompt_format.md; several calls at once: vLLM, llama_tool_parser
    Mistral         mistral-common, src/mistral_common/tokens/tokenizers/instruct.py (versions 3 to 13)
    Qwen3-Coder     its model card's qwen3coder_tool_parser.py, which also says how values get their types
    Gemma 3         ai.google.dev/gemma/docs/capabilities/function-calling; the fences come from Ollama's templates
    FunctionGemma   ai.google.dev/gemma/docs/functiongemma/formatting-and-best-practices
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial

from ollampi.api.tools.readers import (
    DEEPSEEK_END,
    DEEPSEEK_LAST,
    DEEPSEEK_SEPARATOR,
    Reader,
    deepseek_call,
    function_call,
    gemma_call,
    json_calls,
    mistral_call,
    tagged_call,
)


@dataclass(frozen=True)
class Frame:
    """How calls are written, so that an answer can be forced to be one: `begin`, calls, `end`.

    before and after surround the arguments of a call; in before, NAME is the tool's name and ID an id of nine letters
    and digits. style: how arguments are written, as "json", "python" (in parentheses), "tags", or with "marks" around
    strings, each of which is `mark`.
    """

    before: str
    after: str = ""
    begin: str = ""
    between: str = ""
    end: str = ""
    style: str = "json"
    mark: str = ""


@dataclass(frozen=True)
class Dialect:
    """The syntax of a family.

    openers: what may begin a call anywhere, and what then reads it; leading: the same by the first character of an
    answer; special: tokens that must be shown in the text, where they are special ones; frame: how calls are forced,
    json_frame: the same for arguments that `frame` cannot write.
    """

    name: str
    frame: Frame
    openers: Mapping[str, Reader] = field(default_factory=dict)
    leading: Mapping[str, Reader] = field(default_factory=dict)
    special: tuple[str, ...] = ()
    json_frame: Frame | None = None


def dialect_of(template: str) -> Dialect | None:
    """Return the dialect of a chat template, Jinja or Go; None where it does not use tools."""
    if not any(_TOOLS.search(tag) for tag in _tags(template)):
        return None
    return next(dialect for text, dialect in _BY_TEXT if text in template)


_TOOLS = re.compile(r"(?<![\w-])tools(?![\w-])|\.Tools\b")


def _tags(template: str) -> Iterator[str]:
    """Yield what stands in the braces of a template, but for comments, in linear time."""
    end = 0
    while (start := template.find("{", end)) >= 0:
        close = {"{": "}}", "%": "%}", "#": "#}"}.get(template[start + 1 : start + 2])
        stop = template.find(close, start + 2) if close else start
        if stop < 0:
            return
        if close and close != "#}":
            yield template[start + 2 : stop]
        end = stop + len(close or "{")


def _call(key: str) -> str:
    """Return a call in JSON up to its arguments."""
    return f'{{"name": "NAME", "{key}": '


def _tagged(name: str, frame: Frame) -> Dialect:
    openers: dict[str, Reader] = {
        "<tool_call>": tagged_call,
        "<function=": partial(function_call, closer="</tool_call>"),  # Qwen3-Coder forgets the tag before at times
    }
    return Dialect(name, frame, openers, special=("<tool_call>", "</tool_call>"), json_frame=_HERMES)


def _mistral(frame: Frame) -> Dialect:
    openers: dict[str, Reader] = {"[TOOL_CALLS]": mistral_call}
    return Dialect("mistral", frame, openers, special=("[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"))


def _gemma(name: str, opener: str, closer: str, mark: str) -> Dialect:
    openers: dict[str, Reader] = {opener: partial(gemma_call, closer=closer, mark=mark)}
    frame = Frame(f"{opener}call:NAME", closer, style="marks", mark=mark)
    return Dialect(name, frame, openers, special=(opener, closer, mark), json_frame=replace(frame, style="json"))


def _deepseek(before: str, after: str) -> Dialect:
    openers: dict[str, Reader] = {
        _DEEPSEEK_CALL: deepseek_call,
        _DEEPSEEK_FIRST: partial(deepseek_call, before=_DEEPSEEK_CALL),
    }
    frame = Frame(f"{_DEEPSEEK_CALL}{before}", f"{after}{DEEPSEEK_END}", _DEEPSEEK_FIRST, "", DEEPSEEK_LAST)
    return Dialect("deepseek", frame, openers, special=(*openers, DEEPSEEK_SEPARATOR, DEEPSEEK_END, DEEPSEEK_LAST))


def _listed(name: str, opener: str, closer: str, key: str = "arguments") -> Dialect:
    """Return the dialect of an array of JSON between two tokens, or as Phi 4 and FireFunction write it at times."""
    openers: dict[str, Reader] = {
        opener: partial(json_calls, closer=closer),
        "functools[": partial(json_calls, first="["),
    }
    frame = Frame(_call(key), "}", f"{opener}[", ", ", f"]{closer}")
    return Dialect(name, frame, openers, special=tuple(filter(None, (opener, closer))))


def _fenced(fence: str, name: str = "name", key: str = "arguments") -> Dialect:
    """Return the dialect of calls within Markdown's fences, in JSON or as Python."""
    openers: dict[str, Reader] = dict.fromkeys((fence, *_FENCES), partial(json_calls, python=True, closer="```"))
    frame = Frame(_call(key).replace("name", name, 1), "}", f"{fence}\n[", ", ", "]\n```")
    return Dialect("fenced", frame, openers, _WHOLE_LIST)


def _llama(frame: Frame) -> Dialect:
    openers: dict[str, Reader] = {"<|python_tag|>": json_calls, "<function=": function_call}
    return Dialect("llama", frame, openers, _WHOLE, special=("<|python_tag|>",))


def _pythonic(opener: str, closer: str) -> Dialect:
    """Return the dialect of an array of Python's calls, which may be the whole answer."""
    openers: dict[str, Reader] = {opener: partial(json_calls, python=True, closer=closer)}
    frame = Frame("NAME", "", "[", ", ", "]", style="python")
    whole = replace(frame, before=_call("parameters"), after="}", style="json")
    return Dialect("pythonic", frame, openers, _WHOLE_LIST, special=(opener, closer), json_frame=whole)


def _generic(key: str) -> Dialect:
    return Dialect("generic", Frame(_call(key), "}", "[", ", ", "]"), {}, _WHOLE)


_DEEPSEEK_CALL, _DEEPSEEK_FIRST = "<\uff5ctool\u2581call\u2581begin\uff5c>", "<\uff5ctool\u2581calls\u2581begin\uff5c>"
_FENCES = ("```json", "```tool_code", "```tool_call", "```tool_use")
_WHOLE: dict[str, Reader] = {first: partial(json_calls, first=first, strict=True) for first in "{["}
_WHOLE_LIST: dict[str, Reader] = {"[": partial(json_calls, first="[", strict=True, python=True)}
_HERMES = Frame(f"<tool_call>\n{_call('arguments')}", "}\n</tool_call>", between="\n")
_XML = Frame("<tool_call>\n<function=NAME>\n", "</function>\n</tool_call>", between="\n", style="tags")

_FUNCTOOLS = Frame(_call("arguments"), "}", "functools[", ", ", "]")

# The first whose text is in a template; a template that knows tools and none of these asks for plain JSON.
_BY_TEXT: tuple[tuple[str, Dialect], ...] = (
    ("<start_function_call>", _gemma("functiongemma", "<start_function_call>", "<end_function_call>", "<escape>")),
    ("<|tool_call>", _gemma("gemma-4", "<|tool_call>", "<tool_call|>", '<|"|>')),
    ("[CALL_ID]", _mistral(Frame("[TOOL_CALLS]NAME[CALL_ID]ID[ARGS]"))),
    ("[ARGS]", _mistral(Frame("[TOOL_CALLS]NAME[ARGS]"))),
    ("[TOOL_CALLS] [", _mistral(Frame(_call("arguments"), "}", "[TOOL_CALLS] [", ", ", "]"))),
    ("[TOOL_CALLS]", _mistral(Frame(_call("arguments"), "}", "[TOOL_CALLS][", ", ", "]"))),
    ("<parameter=", _tagged("qwen-coder", _XML)),
    ("<tool_call>", _tagged("hermes", _HERMES)),
    (
        f"{DEEPSEEK_SEPARATOR}' + tool['function']['name']",
        _deepseek(f"function{DEEPSEEK_SEPARATOR}NAME\n```json\n", "\n```"),
    ),
    (_DEEPSEEK_CALL, _deepseek(f"NAME{DEEPSEEK_SEPARATOR}", "")),
    ("<|START_ACTION|>", _listed("command-r7b", "<|START_ACTION|>", "<|END_ACTION|>", "parameters")),
    ("<|/tool_call|>", _listed("phi", "<|tool_call|>", "<|/tool_call|>")),
    ("<|tool|>", _listed("phi", "<|tool_call|>", "<|/tool_call|>")),
    ("functools", replace(_listed("phi", "<|tool_call|>", ""), frame=_FUNCTOOLS)),
    ("<|tool_call|>", _listed("granite", "<|tool_call|>", "")),
    ("<|tool_call_start|>", _pythonic("<|tool_call_start|>", "<|tool_call_end|>")),
    ("func_name1(", _pythonic("<|python_start|>", "<|python_end|>")),
    ("<function=", _llama(Frame("<function=NAME>", "</function>"))),
    ("<|python_tag|>", _llama(Frame(_call("parameters"), "}", between="; "))),
    ("<|start_header_id|>", _llama(Frame(_call("parameters"), "}", between="; "))),
    ("<|header_start|>", _llama(Frame(_call("parameters"), "}", between="; "))),
    ("Action: ```json", _fenced("Action: ```json", "tool_name", "parameters")),
    *((fence, _fenced(fence)) for fence in _FENCES[1:]),
    ('"parameters"', _generic("parameters")),
    ("", _generic("arguments")),
)
