"""Follow a grammar through the tokens of an answer; runs in the grammar process only."""

from __future__ import annotations

import re
import time
from copy import copy
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

from llguidance import LLMatcher, LLParserLimits, LLTokenizer

from ollampi.mpiruntime.errors import ModelError, RequestError
from ollampi.mpiruntime.reasoning import Reasoning
from ollampi.mpiruntime.tokenizer_folder import tokenizer_json

STEP_S = 1.0  # CPU time of one token
ALLOWANCE_S = 2.0  # CPU time of a whole answer, and what each token adds
PER_TOKEN_S = 0.005
DRAFT_S = 0.001  # CPU time that each token adds for judging drafts
_MOST_DRAFT_S = 0.004
_MOST_FORCED = 64
MAX_REASON_CHARS = 300
# Indented JSON needs white space, but a model must not write it for ever: 24 is below what the HTTP process takes for
# an answer that goes in circles. oneOf is taken as anyOf.
_JSON_DEFAULTS = {"whitespace_pattern": r"[ \n\t\r]{1,24}", "coerce_one_of": True}
_EXCERPT = re.compile(r"\s+1 \| |<non-verbose")  # of the grammar, behind the reason
_LENIENT_TEXT = 'set "x-guidance": {"lenient": true} in the schema to ignore what is not supported'

Mask = bytes | None  # a bit for each token, the lowest first; None allows all


def limits() -> LLParserLimits:
    """Return what bounds the work of one token and the memory of one grammar, far above what sensible ones need."""
    return LLParserLimits(max_lexer_states=50_000, verbose_errors=False)


@dataclass(frozen=True)
class Vocabulary:
    """A model's tokens as grammars see them.

    size: how many tokens have logits; stops: the tokens that may end an answer, perhaps none; ends: what llguidance
    allows where an answer may end.
    """

    tokens: LLTokenizer
    size: int
    stops: frozenset[int]
    ends: frozenset[int]

    def usable(self, token: int) -> bool:
        """Return whether a token can be one of an answer's text."""
        return token < self.size and token not in self.ends


def read_vocabulary(path: str, changed_ns: int, size: int, stops: tuple[int, ...]) -> Vocabulary:
    """Return the vocabulary of a tokenizer's file of a certain age; raise RequestError where it cannot be used."""
    known = [token for token in stops if 0 <= token < size]
    for num_tokens in (size, None):  # None: the tokenizer has tokens that the model lacks
        try:
            tokens = LLTokenizer(tokenizer_json(Path(path)), n_vocab=num_tokens, eos_token=known or None)
            return Vocabulary(tokens, size, frozenset(known), frozenset(tokens.eos_tokens))
        except (OSError, ValueError, ModelError) as e:
            reason = str(e)
    raise RequestError(f"the model's {Path(path).name} cannot be used with a grammar: {reason[:MAX_REASON_CHARS]}")


def compile_grammar(vocabulary: Vocabulary, kind: str, text: str) -> LLMatcher:
    """Return the matcher of a grammar; raise RequestError where it is refused."""
    try:
        matcher = LLMatcher(vocabulary.tokens, _grammar(kind, text), log_level=0, limits=limits())
    except ValueError as e:
        raise refusal(str(e)) from e
    if matcher.is_error():
        raise refusal(matcher.get_error())
    return matcher


def _grammar(kind: str, text: str) -> str:
    """Return a grammar in llguidance's own form."""
    if kind == "regex":
        return LLMatcher.grammar_from_regex(text)
    if kind == "lark":
        return LLMatcher.grammar_from_lark(text)
    return LLMatcher.grammar_from_json_schema(text, defaults=_JSON_DEFAULTS)  # type: ignore[arg-type]


def refusal(reason: str) -> RequestError:
    """Return the error that tells a client why its grammar cannot be used."""
    short = " ".join(_EXCERPT.split(reason)[0].split())[:MAX_REASON_CHARS]
    if not short or short.startswith("NoExtension"):
        short = "it allows no text, or no more"
    remedy = f"; {_LENIENT_TEXT}" if reason.startswith(("Unimplemented keys", "Unknown format")) else ""
    return RequestError(f"the grammar cannot be used: {short}{remedy}")


class Matcher:
    """One answer: which tokens may come next. Every method raises RequestError where the grammar cannot go on."""

    def __init__(
        self, vocabulary: Vocabulary, matcher: LLMatcher, reasoning: Reasoning | None = None, grown_bytes: int = 0
    ) -> None:
        self._vocabulary = vocabulary
        self._matcher = matcher
        self._reasoning = reasoning
        self._next: list[Mask] = []  # the mask of the next token, once it is known
        self._left_s = ALLOWANCE_S
        self._draft_s = _MOST_DRAFT_S
        self.judged = False  # a draft, behind which states may have been made that count against the limits
        self.last_s = 0.0  # what the last call cost
        self.grown_bytes = grown_bytes

    def advance(self, tokens: list[int], draft: list[int]) -> list[Mask]:
        """Take the tokens of the answer; return the mask of the next one, then those behind tokens of the draft.

        There are as many of the latter as tokens of the draft fit, one after the other, and leave something to choose;
        fewer where judging them takes long. They are not taken.
        """
        began = time.thread_time()
        for token in tokens:
            self._take(token)
        if tokens or not self._next:
            self._next = [self._mask()]
        self.last_s = time.thread_time() - began
        self._left_s += PER_TOKEN_S * len(tokens) - self.last_s
        if self.last_s > STEP_S + PER_TOKEN_S * len(tokens) or self._left_s < 0:
            raise refusal("it takes too long to follow; make it less ambiguous")
        self._draft_s = min(_MOST_DRAFT_S, self._draft_s + DRAFT_S * len(tokens))
        return [*self._next, *self._masks_behind(draft)]

    def forced(self) -> list[int]:
        """Return the tokens that must come next, as far as there is nothing to choose."""
        if self._reasoning is not None and not self._reasoning.over:
            return []
        usable = self._vocabulary.usable
        return list(takewhile(usable, self._matcher.compute_ff_tokens()[:_MOST_FORCED]))

    def complete(self, mask: Mask) -> bool:
        """Return whether nothing but the end of the answer is left where a mask says what may come next."""
        return mask is not None and not any_allowed(mask, self._vocabulary.ends)

    def _take(self, token: int) -> None:
        """Go on by one token of the answer."""
        if self._reasoning is not None and not self._reasoning.over:
            fits = bool(self._matcher.validate_tokens([token]))
            if self._reasoning.take(token, fits, self._vocabulary.tokens.decode_bytes([token])):
                return
        if not self._matcher.consume_token(token):
            raise refusal(self._matcher.get_error())

    def _mask(self) -> Mask:
        """Return which tokens may come next."""
        reasoning = self._reasoning
        if reasoning is not None and reasoning.inside:
            return None
        if reasoning is not None and reasoning.forced is not None and not reasoning.optional:
            return with_token(bytes(-(-self._vocabulary.size // 8)), reasoning.forced)
        mask = self._vocabulary_mask(self._matcher)
        return mask if reasoning is None or reasoning.forced is None else with_token(mask, reasoning.forced)

    def _vocabulary_mask(self, matcher: LLMatcher) -> bytes:
        """Return which tokens a matcher allows, without those that have no logits."""
        mask = clipped(matcher.compute_bitmask(), self._vocabulary.size)
        if matcher.is_error():
            raise refusal(matcher.get_error())
        if not self._vocabulary.stops and any_allowed(mask, self._vocabulary.ends):
            mask = without(mask, self._vocabulary.ends)  # the model has no token to stop with
        if not any_allowed(mask):
            raise refusal("")
        return mask

    def _masks_behind(self, draft: list[int]) -> list[Mask]:
        """Return the masks behind the tokens of a draft that fit."""
        if not draft:
            return []
        if self._reasoning is None or self._reasoning.over:
            return self._bound_behind(draft)
        return self._free_behind(copy(self._reasoning), draft)

    def _bound_behind(self, draft: list[int]) -> list[Mask]:
        """Return the masks behind tokens of the answer, from a copy of the matcher."""
        began = time.thread_time()
        masks: list[Mask] = []
        (mask,) = self._next
        trial = self._matcher.deep_copy()
        self.judged = True
        for token in draft:
            late = time.thread_time() - began > self._draft_s
            if late or mask is None or not self._vocabulary.usable(token) or not allows(mask, token):
                break
            try:
                mask = self._vocabulary_mask(trial) if trial.consume_token(token) else None
            except RequestError:
                break
            if mask is None or self.complete(mask):
                break
            masks.append(mask)
        self._draft_s -= time.thread_time() - began
        return masks

    def _free_behind(self, reasoning: Reasoning, draft: list[int]) -> list[Mask]:
        """Return the masks behind tokens that do not end the reasoning, which may change."""
        masks: list[Mask] = []
        for token in draft if reasoning.inside else []:
            reasoning.take(token, False, self._vocabulary.tokens.decode_bytes([token]))
            if not reasoning.inside:
                break
            masks.append(None)
        return masks


def allows(mask: bytes, token: int) -> bool:
    """Return whether a mask allows a token."""
    return token // 8 < len(mask) and bool(mask[token // 8] >> token % 8 & 1)


def any_allowed(mask: bytes, besides: frozenset[int] = frozenset()) -> bool:
    """Return whether a mask allows a token that is not one of `besides`."""
    left = without(mask, besides)
    return left.count(0) < len(left)


def without(mask: bytes, tokens: frozenset[int]) -> bytes:
    """Return a mask that does not allow some tokens."""
    left = bytearray(mask)
    for token in tokens:
        if token // 8 < len(left):
            left[token // 8] &= ~(1 << token % 8)
    return bytes(left)


def with_token(mask: bytes, token: int) -> bytes:
    """Return a mask that allows one token more."""
    more = bytearray(mask)
    more[token // 8] |= 1 << token % 8
    return bytes(more)


def clipped(mask: bytes, size: int) -> bytes:
    """Return the first `size` bits of a mask in whole bytes, any bits behind them 0."""
    cut = bytearray(mask[: -(-size // 8)])
    if size % 8 and len(cut) == -(-size // 8):
        cut[-1] &= (1 << size % 8) - 1
    return bytes(cut)
