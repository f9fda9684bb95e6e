"""Do on every rank what rank 0 says: load, step, unload, until told to stop."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

import torch

from ollampi.kernels.choice import NATIVE, Choice
from ollampi.mpiruntime.cache_size import Room
from ollampi.mpiruntime.communicator import Communicator
from ollampi.mpiruntime.decoder import Output
from ollampi.mpiruntime.errors import MemoryShortError, ModelError
from ollampi.mpiruntime.groups import facts_of
from ollampi.mpiruntime.holder import Holder
from ollampi.mpiruntime.load_report import LoadReport
from ollampi.mpiruntime.log_files import set_level
from ollampi.mpiruntime.overlap import Halving
from ollampi.mpiruntime.replies import Reply, encode_reply
from ollampi.mpiruntime.reply_box import ReplyBox
from ollampi.mpiruntime.request import Sample
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


class Runner(Holder):
    """The models of one rank, and messages. All ranks call `lead` (rank 0) or `follow` (the others) and so act alike.

    Every message goes to the ranks that it concerns, all of them in one order. Rank 0 takes part in one at once, before
    it sends the next; only what concerns other ranks alone is under way at a time, and the first of them answers.
    So whichever message is the oldest that is not done, its ranks have done all that came before: groups may overlap.
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
        """Return whether `step`, or `finish`, need not wait for other ranks to answer. Rank 0 only."""
        return self.takes_part(number) or self.replies.has(number)

    def lead_load(self, load: Load) -> list[LoadReport]:
        """Load a model on the ranks of its group; return what each holds. Rank 0 only, collective.

        Raise ModelError where a rank cannot; then no rank holds the model.
        """
        self.begin(load)
        return self.finish(load)

    def begin(self, load: Load) -> None:
        """Have a model loaded; `finish` must follow, at once where rank 0 has a part in it (`ready`). Rank 0 only."""
        self._ranks[load.model] = load.ranks
        self._tell(load, load.ranks, load.model)

    def finish(self, load: Load) -> list[LoadReport]:
        """Return what each rank of a group holds, once they have loaded; raise ModelError as `lead_load`. Rank 0."""
        try:
            if 0 in self._of(load.ranks):
                return self.load(load)
            reports = self._answer(load.model).reports
        except ModelError:
            self._ranks.pop(load.model, None)
            raise
        if all(report.halves for report in reports):
            self._halving[load.model] = Halving(self._overlap, facts_of(self.facts, load.ranks))
        return reports

    def lead_check(self, check: Check) -> Room:
        """Return how many cache blocks a load can have, and how many layers are streamed. Rank 0 only, collective.

        Raise ModelError where config, files or free memory of any rank of its group forbid the load.
        """
        self._tell(check, check.ranks, check.model)
        if 0 in self._of(check.ranks):
            return self.check(check)
        found = self._answer(check.model).room
        assert found is not None
        return found

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
            self.replies.drain()
            self._tell(message, ())
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
        """Return what another rank answers about a model; raise ModelError where it could not do what it was told."""
        reply = self.replies.take(number)
        if reply.error:
            raise MemoryShortError(reply.error) if reply.short else ModelError(reply.error)
        return reply

    def follow(self) -> None:
        """Act on what rank 0 sends until it says stop. All ranks but 0."""
        while not isinstance(message := decode(self.comm.hear()), Stop):
            self._act(message)

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
            reply = self._loaded(message)
            if self.comm.rank == self._of(message.ranks)[0]:
                self.comm.answer(encode_reply(reply))

    def _stepped(self, step: Step) -> Reply:
        """Return what a step brought this rank."""
        if step.probed and self._models[step.model].group.comm.rank == 0:
            return Reply(step.model, part=self._probe(step) or "")
        began = time.perf_counter()
        output = self.step(step)
        return Reply(step.model, output, seconds=time.perf_counter() - began, halved=step.halved)

    def _loaded(self, message: Load) -> Reply:
        """Return what became of a load or a check; a model that cannot be loaded is rank 0's to report."""
        try:
            if isinstance(message, Check):
                return Reply(message.model, room=self.check(message))
            return Reply(message.model, reports=self.load(message))
        except ModelError as e:
            return Reply(message.model, error=str(e), short=isinstance(e, MemoryShortError))

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
