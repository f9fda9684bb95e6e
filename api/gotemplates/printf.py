"""The part of Go's fmt.Sprintf that templates of models use."""

from __future__ import annotations

import re
from typing import Any

from ollampi.api.gotemplates.failure import failure
from ollampi.api.gotemplates.values import described, encoded, written

_VERB = re.compile(r"%(?P<left>-?)(?P<zero>0?)(?P<width>[1-9]\d{0,2})?(?:\.(?P<digits>\d{1,2}))?(?P<verb>[a-zA-Z%]?)")


def printf(form: object, values: list[Any]) -> str:
    """Return a form with its verbs (v s q d t f e g x) replaced by values; raise ApiError where they do not fit."""
    if not isinstance(form, str):
        raise failure(f"printf needs a text first, not {described(form)}")
    left = list(values)

    def replace(found: re.Match[str]) -> str:
        """Return the text in the place of one verb."""
        if found["verb"] == "%":
            return "%"
        if not left:
            raise failure(f"printf {found[0]!r} has no value left")
        text = _text(found, left.pop(0))
        width = int(found["width"] or 0)
        return text.ljust(width) if found["left"] else text.rjust(width, "0" if found["zero"] else " ")

    text = _VERB.sub(replace, form)
    if left:
        raise failure(f"printf has {len(left)} values more than verbs")
    return text


def _text(found: re.Match[str], value: Any) -> str:
    """Return a value as a verb asks for it."""
    verb, digits = found["verb"], found["digits"]
    if verb in ("v", "s") and (verb == "v" or not isinstance(value, int | float)):
        text = written(value, "<nil>")
        return text if digits is None or verb == "v" else text[: int(digits)]
    if verb == "q" and isinstance(value, str):
        return encoded(value).replace("\\u003c", "<").replace("\\u003e", ">").replace("\\u0026", "&")
    if verb == "t" and isinstance(value, bool):
        return written(value)
    if verb in ("d", "x") and type(value) is int:
        return format(value, verb)
    if verb in ("f", "e") and type(value) is float:
        return format(value, f".{digits or 6}{verb}")
    if verb == "g" and type(value) is float:
        return written(value)
    raise failure(f"printf cannot write {described(value)} by {found[0]!r}")
