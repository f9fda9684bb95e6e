"""Render templates of Go's text/template as Ollama does: those of its models, and /api/generate's `template` field.

How a conversation becomes the values of a template is a fact of Ollama (template/template.go: Execute, collate).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ollampi.api.gotemplates.interpreter import MAX_OUTPUT_CHARS, Interpreter
from ollampi.api.gotemplates.nodes import Action, Body, Field, Pipe, cut
from ollampi.api.gotemplates.parser import MAX_CHARS, parse
from ollampi.api.gotemplates.tools import message_record, tool_records

__all__ = ["MAX_CHARS", "MAX_OUTPUT_CHARS", "GoTemplate", "Thinking", "template_capabilities"]

_CAPABILITIES = {"tools": {"tools"}, "insert": {"suffix"}, "thinking": {"thinking", "think"}}

Message = dict[str, Any]


@dataclass(frozen=True)
class Thinking:
    """Whether and how hard a model shall think, and whether anybody said so."""

    on: bool = False
    level: str = ""
    told: bool = False

    @property
    def values(self) -> dict[str, object]:
        """Return what templates know of it."""
        return {"Think": self.on, "ThinkLevel": self.level, "IsThinkSet": self.told}


UNSAID = Thinking()


class GoTemplate:
    """A parsed template; safe to use from several threads.

    names: all fields that it mentions, in lower case. The constructor raises ApiError (500, as Ollama does) where the
    template cannot be parsed, the other methods where it cannot be rendered or takes too long.
    """

    def __init__(self, source: str) -> None:
        self._tree = parse(source)
        self.names = self._tree.names
        self._body: Body = self._tree.bodies[""]
        if "messages" not in self.names and "response" not in self.names:
            self._body.append(Action(Pipe(((Field(("Response",)),),))))

    def render(self, **values: object) -> str:
        """Return the text up to .Response, where the model goes on, with `values` as the fields."""
        return Interpreter(self._tree).render(cut(self._body, "Response")[0], {"Response": "", **values}).text

    def conversation(self, messages: list[Message], tools: list[Any], thinking: Thinking = UNSAID) -> str:
        """Return the prompt of a conversation.

        A template that knows messages gets all of them. An older one is rendered once for each turn, which ends with
        the assistant's answer; the last turn ends where the model goes on.
        """
        messages = _collated(messages)
        if "messages" in self.names:
            system = "\n\n".join(_content(message) for message in messages if message["role"] == "system")
            records = [message_record(message) for message in messages]
            values = {"System": system, "Messages": records, "Tools": tool_records(tools), "Response": ""}
            return Interpreter(self._tree).render(self._body, {**values, **thinking.values}).text
        interpreter, turns = Interpreter(self._tree), _turns(messages)
        for turn in turns[:-1]:
            interpreter.render(self._body, {**turn, **thinking.values})
        return interpreter.render(cut(self._body, "Response")[0], {**turns[-1], **thinking.values}).text

    def infill(self, prefix: str, suffix: str, thinking: Thinking = UNSAID) -> str:
        """Return the prompt that asks for what stands between two texts."""
        values = {"Prompt": prefix, "Suffix": suffix, "Response": "", **thinking.values}
        return Interpreter(self._tree).render(self._body, values).text


def template_capabilities(source: str) -> list[str]:
    """Return what a model can do by its template: "tools", "insert", "thinking"; raise ApiError."""
    names = GoTemplate(source).names
    return [capability for capability, known in _CAPABILITIES.items() if known & names]


def _content(message: Message) -> str:
    content = message.get("content")
    return content if isinstance(content, str) else ""


def _collated(messages: list[Message]) -> list[Message]:
    """Return messages with those of one role in a row as one, but for results of tools."""
    groups: list[list[Message]] = []
    for message in messages:
        if groups and groups[-1][0]["role"] == message["role"] != "tool":
            groups[-1].append(message)
        else:
            groups.append([message])
    return [group[0] if len(group) == 1 else _merged(group) for group in groups]


def _merged(group: list[Message]) -> Message:
    """Return one message for several; unlike for Ollama the calls of all are kept."""
    merged = {**group[0], "content": "\n\n".join(map(_content, group))}
    calls = [call for message in group for call in message.get("tool_calls") or ()]
    return {**merged, "tool_calls": calls} if calls else merged


def _turns(messages: list[Message]) -> list[dict[str, str]]:
    """Return the values of each rendering of a template that knows no messages; at least one."""
    turns: list[dict[str, str]] = []
    turn = {"System": "", "Prompt": "", "Response": ""}
    for message in messages:
        role = message["role"]
        ended = turn["Response"] or (turn["Prompt"] and role == "system")
        if ended and role in ("system", "user"):
            turns.append(turn)
            turn = {"System": "", "Prompt": "", "Response": ""}
        if name := {"system": "System", "user": "Prompt", "assistant": "Response"}.get(role):
            turn[name] = _content(message)
    return [*turns, turn]
