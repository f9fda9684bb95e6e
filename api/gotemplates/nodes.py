"""The tree of a parsed template of Go."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Literal:
    """A text, a number, true, false or nil."""

    value: str | int | float | bool | None


@dataclass(frozen=True, slots=True)
class Field:
    """What the dot holds under these names, one below the other; the dot itself without names."""

    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Variable:
    """A variable by its place in the frame (place 0 is $), and names below it."""

    place: int
    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Function:
    """A function by its name."""

    name: str


@dataclass(frozen=True, slots=True)
class Group:
    """A pipeline in parentheses, and names below its value."""

    pipe: Pipe
    names: tuple[str, ...]


Operand = Literal | Field | Variable | Function | Group


@dataclass(frozen=True, slots=True)
class Pipe:
    """Commands, each of which gets the value of the one before as its last argument; a command begins with a function
    or is one operand alone.

    places: of the variables that it sets, none as a rule; declares: whether these are new.
    """

    commands: tuple[tuple[Operand, ...], ...]
    places: tuple[int, ...] = ()
    declares: bool = False


@dataclass(frozen=True, slots=True)
class Text:
    """Text that is copied."""

    text: str


@dataclass(frozen=True, slots=True)
class Action:
    """A pipeline whose value is written, unless it sets a variable."""

    pipe: Pipe


@dataclass(slots=True)
class If:
    """Conditions with what to render where one is the first that holds, and what where none does."""

    arms: list[tuple[Pipe, Body]]
    otherwise: Body = field(default_factory=list)


@dataclass(slots=True)
class With:
    """A value that becomes the dot where it is not empty, and what to render where it is."""

    pipe: Pipe
    body: Body = field(default_factory=list)
    otherwise: Body = field(default_factory=list)


@dataclass(slots=True)
class Range(With):
    """A list or map whose items become the dot one after the other, and what to render where it is empty."""


@dataclass(frozen=True, slots=True)
class Jump:
    """The end of a loop ("break") or of one turn ("continue")."""

    kind: str


@dataclass(frozen=True, slots=True)
class Invoke:
    """A defined template, rendered with the value of the pipeline, if any, as its dot."""

    name: str
    pipe: Pipe | None


Node = Text | Action | If | With | Jump | Invoke
Body = list[Node]


def cut(body: Body, name: str) -> tuple[Body, bool]:
    """Return what remains of a body when all behind the first action that writes `.name` goes, and whether it has one.

    That is how Ollama ends a prompt: the answer goes on there.
    """
    kept: Body = []
    for node in body:
        node, found = _cut_node(node, name)
        kept.append(node)
        if found:
            return kept, True
    return kept, False


def _cut_node(node: Node, name: str) -> tuple[Node, bool]:
    if isinstance(node, Action):
        return node, _mentions(node.pipe, name)
    if isinstance(node, If):
        arms: list[tuple[Pipe, Body]] = []
        for pipe, body in node.arms:
            body, found = cut(body, name)
            arms.append((pipe, body))
            if found:
                return If(arms), True
        otherwise, found = cut(node.otherwise, name)
        return If(arms, otherwise), found
    if isinstance(node, With):
        body, found = cut(node.body, name)
        otherwise, later = ([], True) if found else cut(node.otherwise, name)
        return type(node)(node.pipe, body, otherwise), later
    return node, False


def _mentions(pipe: Pipe, name: str) -> bool:
    return any(name in operand.names for operand in _operands(pipe) if isinstance(operand, Field))


def _operands(pipe: Pipe) -> Iterator[Operand]:
    for command in pipe.commands:
        for operand in command:
            yield operand
            if isinstance(operand, Group):
                yield from _operands(operand.pipe)
