"""Give running answers drafts where they are likely to save time: from their grammar, their text, a smaller model.

Rank 0 only. The draft model is loaded on all ranks beside the model it serves, with a cache of as many blocks: both
write a sequence's keys under the same block numbers, so the scheduler knows of one cache only. A draft model's stale or
missing keys make its drafts worse, never the text.
"""

from __future__ import annotations

from ollampi.mpiruntime.draft_model import DraftModel
from ollampi.mpiruntime.gpu_sampler import sample_rows
from ollampi.mpiruntime.hosted_model import HostedModel
from ollampi.mpiruntime.runner import Runner
from ollampi.mpiruntime.sampler import Pick
from ollampi.mpiruntime.sequence import Sequence
from ollampi.mpiruntime.step import Chunk, Step

Planned = list[tuple[Sequence, Chunk]]
_TOO_DEAR = 0.97  # a price that hardly any draft can pay
_UNKNOWN = -1  # a draft token that is to be computed


class Speculation:
    """The drafts of all models."""

    def __init__(self, runner: Runner) -> None:
        self.runner = runner

    def propose(self, model: HostedModel) -> None:
        """Give running answers drafts that are forced or from their own text, or else room for the draft model's."""
        decoding = [s for s in model.scheduler.running if s.pending == 1 and s.pool is None]
        allowed = {asked: model.max_drafts(asked) for asked in {s.request.max_drafts for s in decoding}}
        if not any(allowed.values()):
            return
        most = [_most(s, allowed[s.request.max_drafts]) for s in decoding]
        price = model.pace.price(len(decoding), sum(most))
        if price is None:
            return
        if price > _TOO_DEAR:
            model.pace.decline(len(decoding))
            return
        without = []
        for sequence, limit in zip(decoding, most, strict=True):
            _propose(sequence, limit, price)
            if not sequence.drafts and limit:
                without.append((sequence, limit))
        _drop_unworthy(model, decoding)
        if model.draft is not None:
            _make_room(model, model.draft, without)

    def fill(self, model: HostedModel, planned: Planned) -> Planned:
        """Return the plan with the draft model's tokens where `propose` left room for them, and let it see prompts."""
        if model.draft is None:
            return planned
        self._read_prompts(model.draft, planned)
        wanting = [(s, chunk) for s, chunk in planned if chunk.num_logits > 1 and s.drafts[0] == _UNKNOWN]
        if not wanting:
            return planned
        self._draft(model.draft, wanting)
        return [(s, _with_drafts(s, chunk)) for s, chunk in planned]

    def _read_prompts(self, draft: DraftModel, planned: Planned) -> None:
        """Compute the draft model's keys of the prompt tokens of a step."""
        chunks = []
        for sequence, chunk in planned:
            end = chunk.start + len(chunk.tokens)
            if sequence.pool is None and chunk.num_logits <= 1 < len(chunk.tokens) and end <= draft.context:
                chunks.append(chunk._replace(num_logits=0))
                sequence.num_drafted = end
        if chunks:
            step = Step(draft.number, chunks)
            self.runner.send(step)
            self.runner.step(step)

    def _draft(self, draft: DraftModel, wanting: Planned) -> None:
        """Set the drafts of sequences, token by token for all of them together.

        A draft is drawn as the sampler would, with the random number of its position: where the two models agree on the
        chances, they agree on the token.
        """
        room = {s: len(s.drafts) for s, _ in wanting}
        blocks = {s: chunk.blocks for s, chunk in wanting}
        for sequence in room:
            sequence.drafts = []
        going = list(room)
        while going:
            chunks = [_next_chunk(s, draft.max_step_tokens, blocks[s]) for s in going]
            picks = [Pick(s.request.sampling, s.tokens + s.drafts, s.seed, s.position + len(s.drafts)) for s in going]
            for sequence, chunk, token in zip(going, chunks, self._sampled(draft, chunks, picks), strict=True):
                sequence.num_drafted = chunk.start + len(chunk.tokens)
                if token is not None:
                    sequence.drafts.append(token)
                else:
                    room[sequence] = 0
            going = [s for s in going if len(s.drafts) < room[s]]

    def _sampled(self, draft: DraftModel, chunks: list[Chunk], picks: list[Pick]) -> list[int | None]:
        """Return the draft model's choice behind each chunk."""
        step = Step(draft.number, chunks)
        self.runner.send(step)
        with draft.pace.timed(sum(len(chunk.tokens) for chunk in chunks)):
            logits = self.runner.step(step).logits
        assert logits is not None
        return sample_rows(logits, picks)


def _most(sequence: Sequence, allowed: int) -> int:
    """Return how many of the allowed drafts of a sequence its grammar and its length allow too."""
    if sequence.guide is not None and sequence.guide.plain:
        return 0
    return min(allowed, sequence.draft_room)


def _propose(sequence: Sequence, limit: int, price: float) -> None:
    """Set the drafts of a sequence that need no model, at most `limit`; none where they are not worth the price."""
    if sequence.guide is not None and sequence.guide.forced:
        sequence.trust = sequence.forced_trust
        sequence.drafts = sequence.guide.forced[: min(limit, sequence.trust.length(price))]
    else:
        sequence.drafts = sequence.lookup.propose(sequence.tokens, limit, price) if limit else []
        sequence.trust = sequence.lookup.trust


def _drop_unworthy(model: HostedModel, decoding: list[Sequence]) -> None:
    """Take the drafts away again where all together bring less than they cost: even few of them cost a good deal."""
    num_drafts = sum(len(s.drafts) for s in decoding)
    price = model.pace.price(len(decoding), num_drafts)
    if price is not None and sum(s.trust.expected(len(s.drafts)) for s in decoding) < price * num_drafts:
        model.pace.decline(len(decoding))
        for sequence in decoding:
            sequence.drafts = []


def _make_room(model: HostedModel, draft: DraftModel, without: list[tuple[Sequence, int]]) -> None:
    """Give sequences as much room for drafts of the draft model as makes the most tokens per second."""
    able = [(s, min(limit, draft.context - len(s.tokens))) for s, limit in without]
    able = [(s, limit) for s, limit in able if limit > 0]
    if not able:
        return
    length = _best_length(model, draft, [s.draft_trust.chance for s, _ in able], max(limit for _, limit in able))
    for sequence, limit in able:
        sequence.num_drafted = min(sequence.num_drafted, sequence.num_cached)
        sequence.trust = sequence.draft_trust
        sequence.drafts = [_UNKNOWN] * min(limit, length)
        if not length:
            sequence.draft_trust.fade()


def _best_length(model: HostedModel, draft: DraftModel, chances: list[float], most: int) -> int:
    """Return how many tokens to draft for each of some sequences; 0 where plain decoding is faster."""
    count = len(chances)
    each = draft.pace.seconds(count) or 0.0  # unknown: try
    best, best_rate, tokens = 0, 0.0, 0.0
    for length in range(most + 1):
        tokens += sum(chance**length for chance in chances)
        checked = (model.pace.seconds(count) or 0.0) + (model.pace.draft_seconds(count, count * length) or 0.0)
        seconds = checked + length * each
        if seconds and tokens / seconds > best_rate:
            best, best_rate = length, tokens / seconds
    return best


def _next_chunk(sequence: Sequence, most: int, blocks: list[int]) -> Chunk:
    """Return what the draft model has not seen of a sequence and its drafts, at most the last `most` tokens."""
    text = sequence.tokens + sequence.drafts
    start = max(min(sequence.num_drafted, len(text) - 1), len(text) - most)
    return Chunk(text[start:], start, blocks, 1)


def _with_drafts(sequence: Sequence, chunk: Chunk) -> Chunk:
    """Return the chunk with the sequence's drafts behind its own tokens."""
    if chunk.num_logits <= 1:
        return chunk
    own = chunk.tokens[: len(chunk.tokens) - chunk.num_logits + 1]
    return chunk._replace(tokens=own + sequence.drafts, num_logits=1 + len(sequence.drafts))
