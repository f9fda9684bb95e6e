"""Parse the source of a template of Go into its tree.

Blocks are kept on a stack, so only parentheses recur, and both together are bounded.
"""

from __future__ import annotations

from dataclasses import dataclass

from ollampi.api.errors import shown
from ollampi.api.gotemplates.expressions import Cursor, Expressions, Scope
from ollampi.api.gotemplates.failure import failure
from ollampi.api.gotemplates.lexer import Token, pieces
from ollampi.api.gotemplates.nodes import Action, Body, If, Invoke, Jump, Pipe, Range, Text, With

MAX_CHARS = 1 << 16
MAX_DEPTH = 100


@dataclass(frozen=True, slots=True)
class Tree:
    """A parsed template.

    bodies: of the templates that it defines, by name, its own under ""; names: all fields that it mentions, in lower
    case; places: how many variables a frame holds.
    """

    bodies: dict[str, Body]
    names: frozenset[str]
    places: int


@dataclass(slots=True)
class _Block:
    """A block that is open: its keyword and node, where the nodes behind it go, what was known before it."""

    keyword: str
    node: If | With | None
    behind: Body
    known: Scope


def parse(source: str) -> Tree:
    """Return the tree of a template; raise ApiError (500) where it cannot be parsed."""
    if len(source) > MAX_CHARS:
        raise failure(f"{len(source)} characters are over the limit of {MAX_CHARS}; shorten it")
    return _Parser().parse(source)


class _Parser:
    def __init__(self) -> None:
        self._expressions = Expressions(MAX_DEPTH)
        self._body: Body = []
        self._bodies: dict[str, Body] = {"": self._body}
        self._open: list[_Block] = []
        self._keywords = {
            "if": self._if,
            "with": self._with,
            "range": self._with,
            "else": self._else,
            "end": self._end,
            "break": self._jump,
            "continue": self._jump,
            "define": self._define,
            "block": self._define,
            "template": self._invoke,
        }

    def parse(self, source: str) -> Tree:
        """Return the tree of a template; raise ApiError (500) where it cannot be parsed."""
        for piece in pieces(source):
            if isinstance(piece, str):
                if piece:
                    self._body.append(Text(piece))
            else:
                self._take(piece)
        if self._open:
            raise failure(f"unexpected EOF; close each {{{{ {self._open[-1].keyword} }}}} with {{{{ end }}}}")
        return Tree(self._bodies, frozenset(self._expressions.names), self._expressions.most_variables)

    def _take(self, tokens: list[Token]) -> None:
        """Take in one action."""
        cursor = Cursor(tokens)
        cursor.skip_blanks()
        keyword = cursor.next_if("name", *self._keywords)
        if keyword:
            self._keywords[keyword](keyword, cursor)
        else:
            self._body.append(Action(self._expressions.pipe(cursor, 1)))
        cursor.expect_end()

    def _if(self, keyword: str, cursor: Cursor) -> None:
        known = self._expressions.known
        node = If([(self._expressions.pipe(cursor, 1), [])])
        self._opened(_Block(keyword, node, self._body, known), node.arms[0][1])

    def _with(self, keyword: str, cursor: Cursor) -> None:
        known = self._expressions.known
        pipe = self._expressions.pipe(cursor, 2 if keyword == "range" else 1)
        node = Range(pipe) if keyword == "range" else With(pipe)
        self._opened(_Block(keyword, node, self._body, known), node.body)

    def _opened(self, block: _Block, body: Body) -> None:
        """Let the next nodes go into `body`, until the block ends."""
        if block.node is not None:
            self._body.append(block.node)
        self._open.append(block)
        self._expressions.deeper()
        self._body = body

    def _else(self, keyword: str, cursor: Cursor) -> None:
        block = self._open[-1] if self._open else None
        if block is None or block.node is None or self._body is block.node.otherwise:
            raise failure("unexpected {{ else }}")
        cursor.skip_blanks()
        if isinstance(block.node, If) and cursor.next_if("name", "if"):
            body: Body = []
            block.node.arms.append((self._expressions.pipe(cursor, 1), body))
            self._body = body
        else:
            self._body = block.node.otherwise

    def _end(self, keyword: str, cursor: Cursor) -> None:
        if not self._open:
            raise failure("unexpected {{ end }}")
        block = self._open.pop()
        self._body = block.behind
        self._expressions.leave(block.known)

    def _jump(self, keyword: str, cursor: Cursor) -> None:
        if not any(isinstance(block.node, Range) for block in self._open):
            raise failure(f"{{{{ {keyword} }}}} outside {{{{ range }}}}")
        self._body.append(Jump(keyword))

    def _define(self, keyword: str, cursor: Cursor) -> None:
        name = self._quoted(cursor)
        if keyword == "define" and self._open:
            raise failure("unexpected {{ define }} inside another block")
        if keyword == "block":
            self._body.append(Invoke(name, self._expressions.pipe(cursor, 0)))
        body: Body = []
        self._bodies[name] = body
        block = _Block(keyword, None, self._body, self._expressions.known)
        self._expressions.hide_variables()
        self._opened(block, body)

    def _invoke(self, keyword: str, cursor: Cursor) -> None:
        name = self._quoted(cursor)
        cursor.skip_blanks()
        pipe: Pipe | None = None if cursor.at_end else self._expressions.pipe(cursor, 0)
        self._body.append(Invoke(name, pipe))

    def _quoted(self, cursor: Cursor) -> str:
        cursor.skip_blanks()
        name = cursor.next_if("string")
        if not name:
            raise failure(f"a name in quotes is missing before {shown(cursor.rest, 40)!r}")
        return name
