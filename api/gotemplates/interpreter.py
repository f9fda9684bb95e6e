"""Render the tree of a template of Go, within bounds on the steps it takes and the characters it handles."""

from __future__ import annotations

from typing import Any

from ollampi.api.gotemplates.failure import failure
from ollampi.api.gotemplates.functions import ARITIES, call
from ollampi.api.gotemplates.nodes import (
    Action,
    Body,
    Field,
    Function,
    If,
    Invoke,
    Jump,
    Literal,
    Node,
    Operand,
    Pipe,
    Range,
    Text,
    Variable,
    With,
)
from ollampi.api.gotemplates.parser import MAX_DEPTH, Tree
from ollampi.api.gotemplates.values import below, described, truth, written

MAX_STEPS = 200_000
MAX_OUTPUT_CHARS = 32 << 20
_ITEMS_PER_CHAR = 4  # a slice of a list copies so many in the time in which a character is written
_CHARS_PER_KEY = 16  # and so many are written in the time in which a key is brought into order


class Interpreter:
    """Renders bodies of one template one behind the other, all within the same bounds."""

    def __init__(self, tree: Tree) -> None:
        self._tree = tree
        self._written: list[str] = []
        self._steps = MAX_STEPS
        self._chars = MAX_OUTPUT_CHARS
        self._depth = 0
        self._frame: list[Any] = []  # the variables, each at its place

    def render(self, body: Body, root: dict[str, Any]) -> Interpreter:
        """Write a body with `root` as its dot; raise ApiError."""
        self._frame = [root] + [None] * (self._tree.places - 1)
        self._body(body, root)
        return self

    @property
    def text(self) -> str:
        """Return what was written."""
        return "".join(self._written)

    def _body(self, body: Body, dot: Any) -> str:
        """Render nodes; return which jump ended them early, if any."""
        for node in body:
            self._step()
            if isinstance(node, Text):
                self._spend(len(node.text))
                self._written.append(node.text)
            elif isinstance(node, Jump):
                return node.kind
            elif jump := self._node(node, dot):
                return jump
        return ""

    def _node(self, node: Node, dot: Any) -> str:
        if isinstance(node, Action):
            value = self._pipe(node.pipe, dot)
            if not node.pipe.places:
                text = written(value)
                self._spend(len(text) * _effort(value))
                self._written.append(text)
            return ""
        if isinstance(node, If):
            return self._if(node, dot)
        if isinstance(node, Range):
            return self._range(node, dot)
        if isinstance(node, With):
            value = self._pipe(node.pipe, dot)
            return self._body(node.body, value) if truth(value) else self._body(node.otherwise, dot)
        if isinstance(node, Invoke):
            self._invoke(node, dot)
        return ""

    def _if(self, node: If, dot: Any) -> str:
        for pipe, body in node.arms:
            self._step()
            if truth(self._pipe(pipe, dot)):
                return self._body(body, dot)
        return self._body(node.otherwise, dot)

    def _range(self, node: Range, dot: Any) -> str:
        value = self._pipe(node.pipe, dot)
        if isinstance(value, dict):
            self._spend(len(value) * _CHARS_PER_KEY)
            items: list[tuple[Any, Any]] = sorted(value.items(), key=lambda item: item[0])
        elif isinstance(value, list):
            items = list(enumerate(value))
            self._spend(len(items))
        elif value is None:
            items = []
        else:
            raise failure(f"range can't iterate over {described(value)}")
        if not items:
            return self._body(node.otherwise, dot)
        places = node.pipe.places
        for key, item in items:
            self._step()
            if places:
                self._frame[places[-1]] = item
            if len(places) == 2:
                self._frame[places[0]] = key
            if self._body(node.body, item) == "break":
                break
        return ""

    def _invoke(self, node: Invoke, dot: Any) -> None:
        body = self._tree.bodies.get(node.name)
        if body is None:
            raise failure(f'template "{node.name[:40]}" not defined')
        if self._depth >= MAX_DEPTH:
            raise failure(f"templates call each other more than {MAX_DEPTH} deep")
        value = None if node.pipe is None else self._pipe(node.pipe, dot)
        outer = self._frame
        self._frame = [value] + [None] * (self._tree.places - 1)
        self._spend(self._tree.places)
        self._depth += 1
        self._body(body, value)
        self._depth -= 1
        self._frame = outer

    def _pipe(self, pipe: Pipe, dot: Any) -> Any:
        """Return the value of a pipeline, and keep it where it names a variable."""
        passed: tuple[Any, ...] = ()
        for command in pipe.commands:
            passed = (self._command(command, dot, passed),)
        if pipe.places:
            self._frame[pipe.places[-1]] = passed[0]
        return passed[0]

    def _command(self, command: tuple[Operand, ...], dot: Any, passed: tuple[Any, ...]) -> Any:
        first = command[0]
        if not isinstance(first, Function):
            return self._operand(first, dot)
        fewest, most = ARITIES[first.name]
        count = len(command) - 1 + len(passed)
        if not fewest <= count <= most:
            raise failure(f"wrong number of arguments for {first.name}: {count}")
        if first.name in ("and", "or"):
            return self._either(first.name == "or", command[1:], dot, passed)
        values = [self._operand(operand, dot) for operand in command[1:]] + list(passed)
        for value in values:
            if isinstance(value, str):
                self._spend(len(value))
            elif isinstance(value, list):
                self._spend(len(value) // _ITEMS_PER_CHAR)
        result = call(first.name, values)
        if isinstance(result, str):
            self._spend(len(result) * max(map(_effort, values), default=1))
        return result

    def _either(self, wanted: bool, operands: tuple[Operand, ...], dot: Any, passed: tuple[Any, ...]) -> Any:
        """Return the first value that is true, or false, as wanted; the last one where none is."""
        value: Any = None
        for operand in operands:
            value = self._operand(operand, dot)
            if truth(value) == wanted:
                return value
        return passed[0] if passed else value

    def _operand(self, operand: Operand, dot: Any) -> Any:
        self._step()
        if isinstance(operand, Literal):
            return operand.value
        if isinstance(operand, Function):
            return self._command((operand,), dot, ())
        if isinstance(operand, Field):
            value = dot
        elif isinstance(operand, Variable):
            value = self._frame[operand.place]
        else:
            value = self._pipe(operand.pipe, dot)
        for name in operand.names:
            value = below(value, name)
        return value

    def _step(self) -> None:
        self._steps -= 1
        if self._steps < 0:
            raise failure(
                f"it takes more than {MAX_STEPS} steps; send fewer messages or tools, or shorten the template"
            )

    def _spend(self, chars: int) -> None:
        self._chars -= chars
        if self._chars < 0:
            raise failure(f"it handles more than {MAX_OUTPUT_CHARS} characters; shorten the template or the prompt")


def _effort(value: object) -> int:
    """Return how many plain characters are written in the time in which one of this value is."""
    return 1 if value is None or isinstance(value, str) else 8
