"""Parse what stands in an action of a template of Go: pipelines, their operands, and the variables in scope."""

from __future__ import annotations

from dataclasses import dataclass

from ollampi.api.errors import shown
from ollampi.api.gotemplates.failure import failure
from ollampi.api.gotemplates.functions import ARITIES
from ollampi.api.gotemplates.lexer import Token
from ollampi.api.gotemplates.nodes import Field, Function, Group, Literal, Operand, Pipe, Variable

_END = Token("end", "")
_WORDS = {"true": True, "false": False, "nil": None}


@dataclass(frozen=True, slots=True)
class Scope:
    """What is known at a place: how many variables, from which on they are visible, and how deep it is nested."""

    variables: int
    first: int
    depth: int


class Cursor:
    """A place in the tokens of one action."""

    def __init__(self, tokens: list[Token]) -> None:
        self._tokens = tokens
        self._place = 0

    @property
    def token(self) -> Token:
        """Return the next token."""
        return self._tokens[self._place] if self._place < len(self._tokens) else _END

    @property
    def at_end(self) -> bool:
        """Return whether all has been read."""
        return self._place >= len(self._tokens)

    @property
    def rest(self) -> str:
        """Return what follows, for messages."""
        return "".join(token.text for token in self._tokens[self._place : self._place + 8])

    def next(self) -> Token:
        """Return the next token and go on."""
        token = self.token
        self._place += 1
        return token

    def next_if(self, kind: str, *texts: str) -> str | None:
        """Return the next token's text and go on where it is of a kind and one of `texts`, if any; else None."""
        token = self.token
        if token.kind != kind or (texts and token.text not in texts):
            return None
        self._place += 1
        return token.text

    def skip_blanks(self) -> None:
        """Go to what is no blank."""
        while self.token.kind == "blank":
            self._place += 1

    def expect_end(self) -> None:
        """Raise ApiError unless only blanks follow."""
        self.skip_blanks()
        if not self.at_end:
            raise failure(f'unexpected "{shown(self.rest, 40)}" in an action')

    def ahead(self, count: int) -> list[Token]:
        """Return the next tokens without blanks, at most `count`."""
        near = self._tokens[self._place : self._place + 2 * count]
        return [token for token in near if token.kind != "blank"][:count]


class Expressions:
    """Parses the pipelines of one template and keeps which variables are in scope.

    names: the fields met so far, in lower case; most_variables: how many were ever in scope at once, $ included.
    """

    def __init__(self, max_depth: int) -> None:
        self.names: set[str] = set()
        self.most_variables = 1
        self._max_depth = max_depth
        self._variables: list[str] = []
        self._first = 0
        self._depth = 0

    @property
    def known(self) -> Scope:
        """Return what is in scope."""
        return Scope(len(self._variables), self._first, self._depth)

    def leave(self, scope: Scope) -> None:
        """Forget what was declared since `scope`."""
        del self._variables[scope.variables :]
        self._first, self._depth = scope.first, scope.depth

    def hide_variables(self) -> None:
        """Let a defined template see none of the variables around it."""
        self._first = len(self._variables)

    def deeper(self) -> None:
        """Count one more block or parenthesis around what follows; raise ApiError where there are too many."""
        self._depth += 1
        if self._depth > self._max_depth:
            raise failure(f"more than {self._max_depth} nested blocks and parentheses")

    def pipe(self, cursor: Cursor, at_most: int) -> Pipe:
        """Return the next pipeline, which may set that many variables; raise ApiError."""
        cursor.skip_blanks()
        targets, declares = self._targets(cursor, at_most)
        commands = [self._command(cursor)]
        while cursor.next_if("mark", "|"):
            commands.append(self._command(cursor))
            if not isinstance(commands[-1][0], Function):
                raise failure("what follows a | must be a function")
        first = commands[0]
        if len(first) == 1 and isinstance(first[0], Literal) and first[0].value is None:
            raise failure("nil is not a command")
        for command in commands:
            if len(command) > 1 and not isinstance(command[0], Function):
                raise failure("only a function can be given arguments")
        places = tuple(self._declare(name) if declares else self._place(name) for name in targets)
        return Pipe(tuple(commands), places, declares)

    def _targets(self, cursor: Cursor, at_most: int) -> tuple[list[str], bool]:
        """Return the variables that the pipeline sets, and whether they are new."""
        for count in range(1, at_most + 1):
            tokens = cursor.ahead(2 * count)
            kinds = [token.kind for token in tokens[::2]]
            marks = [token.text for token in tokens[1::2]]
            if len(tokens) == 2 * count and kinds == ["variable"] * count and marks[:-1] == [","] * (count - 1):
                if marks[-1] not in ("=", ":="):
                    continue
                for _ in tokens:
                    cursor.skip_blanks()
                    cursor.next()
                cursor.skip_blanks()
                return [token.text for token in tokens[::2]], marks[-1] == ":="
        return [], False

    def _declare(self, name: str) -> int:
        if name == "$":
            raise failure("$ cannot be declared")
        self._variables.append(name)
        place = len(self._variables) - self._first
        self.most_variables = max(self.most_variables, place + 1)
        return place

    def _place(self, name: str) -> int:
        if name == "$":
            return 0
        for index in range(len(self._variables) - 1, self._first - 1, -1):
            if self._variables[index] == name:
                return index - self._first + 1
        raise failure(f'undefined variable "{name}"')

    def _command(self, cursor: Cursor) -> tuple[Operand, ...]:
        """Return the operands up to a |, a closing parenthesis or the end."""
        operands: list[Operand] = []
        cursor.skip_blanks()
        while not self._at_end_of_command(cursor):
            operands.append(self._operand(cursor))
            if cursor.token.kind != "blank" and not self._at_end_of_command(cursor):
                raise failure(f'unexpected "{shown(cursor.rest, 40)}" in an action')
            cursor.skip_blanks()
        if not operands:
            raise failure("missing value for a command")
        return tuple(operands)

    def _at_end_of_command(self, cursor: Cursor) -> bool:
        return cursor.at_end or (cursor.token.kind == "mark" and cursor.token.text in "|)")

    def _operand(self, cursor: Cursor) -> Operand:
        token = cursor.next()
        if token.kind == "field":
            return Field((self._name(token), *self._fields(cursor)))
        if token.kind == "variable":
            return Variable(self._place(token.text), self._fields(cursor))
        if token.kind == "string":
            return Literal(token.text)
        if token.kind == "number":
            return Literal(_number(token.text))
        if token.kind == "name":
            return self._word(token.text)
        if token.text == ".":
            return Field(())
        if token.text == "(":
            return self._group(cursor)
        raise failure(f'unexpected "{shown(token.text, 40)}" in an action')

    def _word(self, word: str) -> Operand:
        if word in _WORDS:
            return Literal(_WORDS[word])
        if word not in ARITIES:
            raise failure(f'function "{shown(word, 40)}" not defined; known are {", ".join(sorted(ARITIES))}')
        return Function(word)

    def _group(self, cursor: Cursor) -> Group:
        self.deeper()
        pipe = self.pipe(cursor, 0)
        if not cursor.next_if("mark", ")"):
            raise failure("unclosed left parenthesis")
        self._depth -= 1
        return Group(pipe, self._fields(cursor))

    def _fields(self, cursor: Cursor) -> tuple[str, ...]:
        """Return the names that follow without a blank."""
        names: list[str] = []
        while cursor.token.kind == "field":
            names.append(self._name(cursor.next()))
        return tuple(names)

    def _name(self, token: Token) -> str:
        self.names.add(token.text[1:].lower())
        return token.text[1:]


def _number(text: str) -> int | float:
    """Return the number that a token stands for; whole ones are whole as in Go."""
    if "x" in text.lower():
        return int(text, 16)
    return float(text) if set(text.lower()) & set(".e") else int(text)
