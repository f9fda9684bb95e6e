"""Give a tokenizer its special tokens, and what it puts before and after every text."""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import AddedToken, Tokenizer
from tokenizers.processors import TemplateProcessing

from ollampi.mpiruntime.errors import ModelError


def add_tokens(tokenizer: Tokenizer, tokens: Iterable[tuple[int, AddedToken]], field: str) -> None:
    """Add tokens in order of their ids, each of which must be known or follow the last; raise ModelError."""
    wanted = sorted(tokens, key=lambda entry: entry[0])
    tokenizer.add_tokens([token for _, token in wanted if token.content])
    for number, token in wanted:
        found = tokenizer.token_to_id(token.content)
        if token.content and found != number:
            raise ModelError(
                f"{field} gives {token.content!r} the id {number}, which it cannot have here: it is {found}"
            )


def frame_texts(tokenizer: Tokenizer, before: list[int], after: list[int]) -> None:
    """Let the tokenizer put these ids around every text where special tokens are asked for."""
    ids = dict.fromkeys(before + after)
    tokenizer.post_processor = TemplateProcessing(
        single=[*(f"t{number}:0" for number in before), "$A:0", *(f"t{number}:0" for number in after)],
        special_tokens=[
            {"id": f"t{number}", "ids": [number], "tokens": [tokenizer.id_to_token(number)]} for number in ids
        ],
    )


def frame_of(tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """Return the ids that the tokenizer puts before and after every text."""
    encoding = tokenizer.encode("a", add_special_tokens=True)
    own = [place for place, added in enumerate(encoding.special_tokens_mask) if not added]
    first, last = (own[0], own[-1]) if own else (len(encoding.ids), len(encoding.ids))
    return list(encoding.ids[:first]), list(encoding.ids[last + 1 :])
