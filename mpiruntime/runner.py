"""Do on every rank what rank 0 says: load, step, unload, until told to stop."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar

import torch

from ollampi.kernels.choice import NATIVE, Choice
from ollampi.mpiruntime.background import GIVEN_UP
from ollampi.mpiruntime.cache_size import Room
from ollampi.mpiruntime.communicator import Communicator
from ollampi.mpiruntime.decoder import Output
from ollampi.mpiruntime.errors import ModelError
from ollampi.mpiruntime.groups import facts_of
from ollampi.mpiruntime.holder import Holder
from ollampi.mpiruntime.load_report import LoadReport
from ollampi.mpiruntime.log_files import set_level
from ollampi.mpiruntime.overlap import Halving
from ollampi.mpiruntime.replies import Reply, encode_reply
from ollampi.mpiruntime.reply_box import ReplyBox
from ollampi.mpiruntime.request import Sample
from ollampi.mpiruntime.room_for import room_for
from ollampi.mpiruntime.self_test import Finding
from ollampi.mpiruntime.step import (
    Check,
    Examine,
    Load,
    LogFrom,
    Message,
    Recall,
    Report,
    Step,
    Stop,
    Unload,
    decode,
    encode,
)
from ollampi.mpiruntime.trace import Trace
from ollampi.mpiruntime.world import RankFacts

T = TypeVar("T")
_NAP_S = 0.001


class Runner(Holder):
    """The models of one rank, and messages. All ranks call `lead` (rank 0) or `follow` (the others) and so act alike.

    Every message goes to the ranks that it concerns, all of them in one order. Rank 0 takes part in one at once, before
    it sends the next; only what concerns other ranks alone is under way at a time, and the first of them answers.
    So whichever message is the oldest that is not done, its ranks have done all that came before: groups may overlap.
    Files are looked at and read beside all that, by each rank for itself: then each one answers when it is done, and
    nobody waits for it. meanwhile: what rank 0 does again and again while it waits for such answers.
    """

    def __init__(
        self,
        comm: Communicator,
        facts: list[RankFacts],
        trace: Trace | None = None,
        choice: Choice = NATIVE,
        sums: Communicator | None = None,
        overlap: str = "never",
    ) -> None:
        """Take what a Holder takes."""
        super().__init__(comm, facts, trace, choice, sums, overlap)
        self.replies = ReplyBox(self.comm)
        self._ranks: dict[int, Sequence[int]] = {}  # of each model; rank 0 alone knows
        self._halving: dict[int, Halving] = {}  # likewise, of models of which rank 0 holds nothing
        self._own: dict[int, Reply] = {}  # what rank 0 itself found or loaded, until it is wanted
        self.meanwhile: Callable[[], None] = lambda: time.sleep(_NAP_S)

    def send(self, step: Step) -> None:
        """Send a step to the ranks of its model; rank 0 then takes part in it, or waits, with `step`. Rank 0 only."""
        model = self._models.get(step.model)
        halving = self._halving.get(step.model)
        self._cut = model.steps.cuts(step) if model is not None else bool(halving and halving.cuts(step.num_tokens))
        self._tell(replace(step, halved=self._cut), self._ranks.get(step.model, ()), step.model)

    def takes_part(self, number: int) -> bool:
        """Return whether rank 0 holds a part of a model. Rank 0 only."""
        return 0 in self._of(self._ranks.get(number, ()))

    def ready(self, number: int) -> bool:
        """Return whether `step` need not wait for other ranks to answer. Rank 0 only."""
        return self.takes_part(number) or self.replies.has(number)

    def lead_load(self, load: Load) -> list[LoadReport]:
        """Load a model on the ranks of its group; return what each holds. Rank 0 only.

        Raise ModelError where a rank cannot; then no rank holds the model.
        """
        self.begin(load)
        while not self.loaded(load):
            self.meanwhile()
        return self.finish(load)

    def begin(self, load: Load) -> None:
        """Have a model loaded; `finish` must follow once it is `loaded`. Rank 0 only."""
        self._ranks[load.model] = load.ranks
        self._have_read(load)

    def takes_long(self, load: Load) -> bool:
        """Return whether `begin` returns only when the model is loaded. Rank 0 only."""
        return self.holds_up(load) and 0 in self._of(load.ranks)

    def loaded(self, load: Load) -> bool:
        """Return whether all ranks have loaded a model, or could not; where one cannot, the others give up. Rank 0."""
        own = self._has_own(load)
        over = self.replies.has(load.model) and own  # looked at first: the last answer may be the one that failed
        if load.model in self._ranks and (self.replies.failed(load.model) or (own and self._own_error(load.model))):
            self.lead(Unload(load.model))
        return over

    def finish(self, load: Load) -> list[LoadReport]:
        """Return what each rank of a group holds, once they have loaded; raise ModelError as `lead_load`. Rank 0."""
        reports = [reply.report for reply in self._all_replies(load) if reply.report is not None]
        for note in [report.note for report in reports if report.note][:1]:
            self.announce(note)
        if not self.takes_part(load.model) and all(report.halves for report in reports):
            self._halving[load.model] = Halving(self._overlap, facts_of(self.facts, load.ranks))
        return reports

    def lead_check(self, check: Check) -> Room:
        """Return how many cache blocks a load can have, and how many layers are streamed. Rank 0 only.

        Raise ModelError where config, files or free memory of any rank of its group forbid the load.
        """
        self._have_read(check)
        while not (self._has_own(check) and self.replies.has(check.model)):
            self.meanwhile()
        found = [reply.memories for reply in self._all_replies(check)]
        return room_for(check, found, self._of(check.ranks), self.place.gpu is not None)

    def beside(self, work: Callable[[], T]) -> T:
        """Return what `work` returns, or raise what it raises, while rank 0 makes steps. Rank 0 only."""
        return self.background.done(work, self.meanwhile)

    def _have_read(self, message: Load) -> None:
        """Have the ranks of a load read files for it, rank 0 too where it is one of them."""
        ranks = self._of(message.ranks)
        self.replies.expect(message.model, sum(rank != 0 for rank in ranks))
        self._tell(message, message.ranks)
        if 0 in ranks:
            self._begin(message, lambda reply: self._own.update({message.model: reply}))

    def _begin(self, message: Load, then: Callable[[Reply], None]) -> None:
        """Begin to read files for a check or a load."""
        if isinstance(message, Check):
            self.begin_check(message, then)
        else:
            self.begin_load(message, then)

    def _has_own(self, message: Load) -> bool:
        """Return whether rank 0 has done its part, or has none."""
        self.background.look()
        return 0 not in self._of(message.ranks) or message.model in self._own

    def _own_error(self, number: int) -> bool:
        """Return whether rank 0 could not do its part."""
        return number in self._own and bool(self._own[number].error)

    def _all_replies(self, message: Load) -> list[Reply]:
        """Return the answers of all ranks, in their order; raise ModelError with the error of the first that has one.

        That others gave up is no reason.
        """
        own = self._own.pop(message.model, None)
        replies = [*([own] if own else []), *self.replies.take(message.model)]
        errors = [reply.error for reply in replies if reply.error]
        if errors:
            raise ModelError(next((error for error in errors if error != GIVEN_UP), GIVEN_UP))
        return replies

    def lead_report(self) -> list[Sample]:
        """Return the samples of all ranks. Rank 0 only, collective."""
        self._tell(Report(), ())
        return self.meters.samples()

    def lead_examine(self, examine: Examine) -> list[Finding]:
        """Return what a self-test found on each rank. Rank 0 only, collective; no rank may be loading."""
        self._tell(examine, ())
        return self.examine(examine)

    def lead_recall(self, recall: Recall) -> list[bytes]:
        """Return the traced events of each rank as JSON without brackets. Rank 0 only, collective."""
        self._tell(recall, ())
        return self.meters.events(recall.zero)

    def lead(self, message: Unload | LogFrom | Stop) -> None:
        """Send any other message to the ranks that it concerns and act on it. Rank 0 only."""
        if isinstance(message, Stop):
            self._tell(message, ())
            self._close()
            self.replies.drain()
            return
        if isinstance(message, LogFrom):
            self._tell(message, ())
            set_level(message.level)
            return
        ranks = self._ranks.pop(message.model, ())
        self._halving.pop(message.model, None)
        self._tell(message, ranks)
        if 0 in self._of(ranks):
            self.unload(message)

    def _tell(self, message: Message, ranks: Sequence[int], number: int | None = None) -> None:
        """Send a message to some ranks, no ranks being all; number: of the model about which others will answer.

        Where rank 0 takes part it waits until all that it sent is on its way without it: what it computes in may be
        memory that ranks share, where MPI does nothing meanwhile.
        """
        self.comm.tell(encode(message), self._of(ranks))
        if 0 in self._of(ranks):
            self.comm.settle()
        elif number is not None:
            self.replies.expect(number)

    def _answer(self, number: int) -> Reply:
        """Return what another rank answers about a step of a model."""
        (reply,) = self.replies.take(number)
        return reply

    def _close(self) -> None:
        """Give up what is being read."""
        self.background.close()
        self.background.look()

    def follow(self) -> None:
        """Act on what rank 0 sends until it says stop. All ranks but 0."""
        while not isinstance(message := decode(self.comm.hear(self.background.look)), Stop):
            self._act(message)
        self._close()

    def _act(self, message: Message) -> None:
        """Act on one message; the first rank of a group without rank 0 answers for it."""
        if isinstance(message, Unload):
            self.unload(message)
        elif isinstance(message, LogFrom):
            set_level(message.level)
        elif isinstance(message, Report):
            self.meters.samples()
        elif isinstance(message, Examine):
            self.examine(message)
        elif isinstance(message, Recall):
            self.meters.events(message.zero)
        elif isinstance(message, Step):
            reply = self._stepped(message)
            if self.comm.rank == self._models[message.model].group.ranks[0]:
                self.comm.answer(encode_reply(reply))
        elif isinstance(message, Load):
            self._begin(message, lambda reply: self.comm.answer(encode_reply(reply)))

    def _stepped(self, step: Step) -> Reply:
        """Return what a step brought this rank."""
        if step.probed and self._models[step.model].group.comm.rank == 0:
            return Reply(step.model, part=self._probe(step) or "")
        began = time.perf_counter()
        output = self.step(step)
        return Reply(step.model, output, seconds=time.perf_counter() - began, halved=step.halved)

    @torch.inference_mode()
    def step(self, step: Step) -> Output:
        """Return what the step's chunks ask for on rank 0 and the group's first, nothing elsewhere; collective."""
        if self.comm.rank == 0 and not self.takes_part(step.model):
            reply = self._answer(step.model)
            if step.model in self._halving:
                self._halving[step.model].observe(step.num_tokens, reply.halved, reply.seconds)
            return reply.output
        return self._compute(step)

    def lead_probe(self, step: Step) -> str | None:
        """Return the first part of the model whose values are not finite in a step, or None. Rank 0 only, collective.

        To the other ranks it is a step like any other.
        """
        step = replace(step, probed=True)
        self.send(step)
        return self._probe(step) if self.takes_part(step.model) else self._answer(step.model).part or None
