"""Choose which tokens of which sequences go into the next step."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from ollampi.mpiruntime.block_manager import BlockManager, block_digest
from ollampi.mpiruntime.errors import BusyError, ContextError
from ollampi.mpiruntime.metrics import ModelCounts
from ollampi.mpiruntime.sequence import Sequence
from ollampi.mpiruntime.step import Chunk


class Scheduler:
    """First come, first served; prompts are cut into pieces and share steps with running answers. Rank 0 only.

    max_step_tokens: tokens in one step; max_running: sequences that hold cache at one time; max_waiting: requests that
    may wait besides; prompt_room: for the tokens of running answers in a step, how many prompt tokens may join them;
    counts: where cache hits and preemptions are counted; whole_prompts: no prompt is cut or shares its beginning, since
    its tokens see those behind them too.
    """

    def __init__(
        self,
        blocks: BlockManager,
        max_step_tokens: int,
        max_running: int,
        max_waiting: int,
        prompt_room: Callable[[int], int] = lambda num_decoding: 1 << 30,
        counts: ModelCounts | None = None,
        whole_prompts: bool = False,
    ) -> None:
        self.blocks = blocks
        self.counts = counts or ModelCounts()
        self.max_step_tokens = max_step_tokens
        self.max_running = min(max_running, max_step_tokens)  # each wants a token in every step
        self.max_waiting = max_waiting
        self.prompt_room = prompt_room
        self.whole_prompts = whole_prompts
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []  # in order of arrival

    @property
    def idle(self) -> bool:
        """Return whether there is nothing to do."""
        return not self.running and not self.waiting

    @property
    def capacity(self) -> int:
        """Return how many tokens the whole cache holds."""
        return self.blocks.num_blocks * self.blocks.block_size

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence; raise ContextError where it can never fit and BusyError where the queue is full."""
        sequence.context = min(sequence.context, self.capacity)
        if not sequence.fits:
            raise ContextError(
                f"the prompt of {len(sequence.tokens)} tokens is longer than the context length currently available"
                f" ({sequence.context} tokens); shorten it or start the server with a larger context_length"
            )
        requests = {s.leader or s for s in (*self.running, *self.waiting)}
        if len(requests) >= self.max_running + self.max_waiting:
            raise BusyError("server busy, please try again.  maximum pending requests exceeded")
        self.waiting.append(sequence)

    def add_more(self, sequence: Sequence) -> None:
        """Queue a further sequence of a request that has its place in the queue; its prompt must fit."""
        self.waiting.append(sequence)

    def remove(self, sequence: Sequence, spoilt: bool = False) -> None:
        """Forget a sequence, running or waiting, and free its blocks; a spoilt one's content is of no use to others."""
        if spoilt:
            self.blocks.forget(sequence.blocks)
        if sequence in self.running:
            self.running.remove(sequence)
        elif sequence in self.waiting:
            self.waiting.remove(sequence)
        self._free(sequence)

    def plan(self) -> list[tuple[Sequence, Chunk]]:
        """Return the sequences of the next step with their chunks; empty only where there is nothing to do yet.

        Running answers come first with one token each and their drafts, then prompts in order of arrival, within
        max_step_tokens and prompt_room.
        """
        planned: list[tuple[Sequence, Chunk]] = []
        stepped_back: set[Sequence] = set()
        decoding = [s for s in self.running if s.pending == 1]
        reading = [s for s in self.running if s.pending > 1] if len(decoding) < len(self.running) else []
        budget = self.max_step_tokens - len(decoding)
        for sequence in decoding:
            if sequence not in stepped_back and self._reserve(sequence, stepped_back):
                planned.append((sequence, self._chunk(sequence, 1 + budget)))
                budget -= len(planned[-1][1].tokens) - 1
        if planned:
            budget = min(budget, self.prompt_room(self.max_step_tokens - budget))
        for sequence in reading:
            if budget > 0 and sequence not in stepped_back and self._reserve(sequence, stepped_back):
                planned.append((sequence, self._chunk(sequence, budget)))
                budget -= len(planned[-1][1].tokens)
        if budget > 0 and self.waiting and not stepped_back:
            planned += self._admit_waiting(budget)
        return [(s, c) for s, c in planned if s not in stepped_back] if stepped_back else planned

    def _admit_waiting(self, budget: int) -> list[tuple[Sequence, Chunk]]:
        """Return chunks of sequences that begin now, at most `budget` tokens.

        In order of arrival, but one whose beginning is just being computed for another waits for that, and one with a
        grammar until that is accepted.
        """
        planned: list[tuple[Sequence, Chunk]] = []
        promised = {digest for s in self.running if s.pending > 1 for digest in s.digests}
        later: list[Sequence] = []
        while budget > 0 and self.waiting and len(self.running) < self.max_running:
            sequence = self.waiting[0]
            if not sequence.admissible or self._is_promised(sequence, promised):
                later.append(self.waiting.popleft())
                continue
            if self.whole_prompts and planned and len(sequence.tokens) > budget:
                break
            if not self._admit(sequence):
                break
            self.running.append(self.waiting.popleft())
            planned.append((sequence, self._chunk(sequence, budget)))
            budget -= len(planned[-1][1].tokens)
            promised.update(sequence.digests)
        self.waiting.extendleft(reversed(later))
        return planned

    def _is_promised(self, sequence: Sequence, promised: set[bytes]) -> bool:
        """Return whether the first block that the sequence could share, and cannot yet, is on its way."""
        full = self._num_sharable(sequence)
        digests = self._digests(sequence, full)[:full]
        missing = next((digest for digest in digests if not self.blocks.has(digest)), None)
        return missing is not None and missing in promised

    def advance(self, sequence: Sequence, count: int) -> None:
        """Note that the next `count` tokens are in the cache now, for others with the same beginning too."""
        size, before = self.blocks.block_size, sequence.num_cached
        sequence.num_cached += count
        for index in range(before // size, sequence.num_cached // size):
            self.blocks.name(sequence.blocks[index], self._digests(sequence, index + 1)[index])

    def trim(self, sequence: Sequence) -> None:
        """Free the blocks that a context shift left over."""
        if sequence.num_cached == 0:
            self._free(sequence)

    def check(self) -> bool:
        """Raise OllampiError where the block accounting is broken; return as BlockManager.check whether that is all."""
        return self.blocks.check(s.blocks for s in self.running)

    def _chunk(self, sequence: Sequence, budget: int) -> Chunk:
        """Return the next tokens of a sequence that has its blocks; the last token of all and drafts ask for logits.

        Where an embedding is wanted, none asks for logits but the sequence's pool for hidden states.
        """
        count = sequence.pending if self.whole_prompts else min(sequence.pending, budget)
        start = sequence.num_cached
        tokens = sequence.tokens[start : start + count]
        if sequence.pool is not None:
            wanted = sequence.pool.wanted(count, last=count == sequence.pending)
            return Chunk(tokens, start, list(sequence.blocks), 0, *wanted)
        if count < sequence.pending:
            return Chunk(tokens, start, list(sequence.blocks), 0)
        if sequence.drafts:
            self._reserve_drafts(sequence, budget - count)
        return Chunk(tokens + sequence.drafts, start, list(sequence.blocks), 1 + len(sequence.drafts))

    def _reserve_drafts(self, sequence: Sequence, most: int) -> None:
        """Keep at most `most` drafts, as far as there are blocks for them that no running answer may need."""
        del sequence.drafts[most:]
        end = len(sequence.tokens) + len(sequence.drafts)
        missing = self.blocks.blocks_for(end) - len(sequence.blocks)
        if missing > 0 and missing + len(self.running) <= self.blocks.num_free:
            sequence.blocks += self.blocks.allocate(missing)
        room = len(sequence.blocks) * self.blocks.block_size - len(sequence.tokens)
        del sequence.drafts[room:]

    def _missing(self, sequence: Sequence) -> int:
        """Return how many blocks the sequence lacks for all its tokens."""
        return max(0, self.blocks.blocks_for(len(sequence.tokens)) - len(sequence.blocks))

    def _reserve(self, sequence: Sequence, stepped_back: set[Sequence]) -> bool:
        """Give a running sequence the blocks for its tokens; others that came later step back where needed.

        Return whether it has them; it may have had to step back itself.
        """
        if len(sequence.tokens) <= len(sequence.blocks) * self.blocks.block_size:
            return True
        while self._missing(sequence) > self.blocks.num_free:
            youngest = self.running[-1]
            self._preempt(youngest)
            stepped_back.add(youngest)
            if youngest is sequence:
                return False
        sequence.blocks += self.blocks.allocate(self._missing(sequence))
        return True

    def _admit(self, sequence: Sequence) -> bool:
        """Give a waiting sequence the blocks for its prompt if they are free; never takes any from others.

        Blocks that hold its beginning already are shared. At least one token is left to compute: its logits are wanted.
        """
        full = self._num_sharable(sequence)
        sequence.blocks = self.blocks.share(self._digests(sequence, full)[:full])
        missing = self._missing(sequence)
        spare = len(self.running)  # room for each running answer to grow by one block
        if missing + spare > self.blocks.num_free and self.running:
            self._free(sequence)
            return False
        sequence.num_cached = sequence.num_drafted = len(sequence.blocks) * self.blocks.block_size
        self.counts.count_prefix(sequence.num_cached)
        sequence.blocks += self.blocks.allocate(missing)
        return True

    def _num_sharable(self, sequence: Sequence) -> int:
        """Return how many blocks of a sequence others may have computed; its last token is always its own."""
        return (
            (len(sequence.tokens) - 1) // self.blocks.block_size if sequence.may_skip and not self.whole_prompts else 0
        )

    def _digests(self, sequence: Sequence, count: int) -> list[bytes]:
        """Return the digests of at least the first `count` blocks of a sequence, all of them full."""
        size, digests = self.blocks.block_size, sequence.digests
        while len(digests) < count:
            start = len(digests) * size
            digests.append(block_digest(digests[-1] if digests else b"", sequence.tokens[start : start + size]))
        return digests

    def _preempt(self, sequence: Sequence) -> None:
        """Send a running sequence back to the head of the queue; its cache is computed again later."""
        self.counts.preemptions += 1
        self.running.remove(sequence)
        self._free(sequence)
        sequence.drafts = []
        self.waiting.appendleft(sequence)

    def _free(self, sequence: Sequence) -> None:
        """Give back all blocks of a sequence."""
        self.blocks.release(sequence.blocks)
        sequence.blocks = []
        sequence.num_cached = 0
