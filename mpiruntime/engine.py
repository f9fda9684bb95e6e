"""Run the one loop of rank 0: take messages, step the models, answer."""

from __future__ import annotations

import math
import secrets
import time
from collections.abc import Callable
from collections.abc import Sequence as Series
from dataclasses import asdict, replace

from ollampi.mpiruntime.active import Active
from ollampi.mpiruntime.background import share_s
from ollampi.mpiruntime.cluster_ops import COMMANDS, ClusterOps
from ollampi.mpiruntime.embedding import Inputs
from ollampi.mpiruntime.ending import Ending
from ollampi.mpiruntime.errors import OllampiError, ShutdownError, code_of
from ollampi.mpiruntime.eviction import NotYet
from ollampi.mpiruntime.flight import StepTimes
from ollampi.mpiruntime.guides import Guides
from ollampi.mpiruntime.hosted import Models
from ollampi.mpiruntime.hosted_model import HostedModel
from ollampi.mpiruntime.inbox import Client, Inbox
from ollampi.mpiruntime.inside import InsideView
from ollampi.mpiruntime.metrics import RequestMeter
from ollampi.mpiruntime.porter import LATE_TEXT, Answered, Porter
from ollampi.mpiruntime.request import EmbedRequest, GenerateRequest, ModelRef, Usage
from ollampi.mpiruntime.runner import Runner
from ollampi.mpiruntime.running import Running
from ollampi.mpiruntime.sequence import Sequence
from ollampi.mpiruntime.step import LogFrom, Stop
from ollampi.mpiruntime.stepper import Progress, Stepper
from ollampi.mpiruntime.take_over import TakeOver
from ollampi.mpiruntime.token_check import check_tokens
from ollampi.mpiruntime.waiting_room import Waiting, WaitingRoom
from ollampi.mpiruntime.wire import Message

_SHUTDOWN_TEXT = "the server is shutting down; try again later"
_GUIDE_POLL_S = 0.001  # the same of an engine that only waits for grammars
_REPLY_POLL_S = 0.002  # of one that waits for other ranks alone, between two looks for messages
_IDLE_POLL_S = 0.02  # how late an idle engine may see a note; messages wake it at once


class Engine:
    """The coordinator's loop.

    observe gets the times of every step; supervise is called several times a second; announce gets a line when the
    loop begins to end.
    """

    def __init__(
        self,
        runner: Runner,
        models: Models,
        inbox: Inbox,
        drain_timeout_s: float,
        observe: Callable[[StepTimes], None] = lambda times: None,
        supervise: Callable[[], None] = lambda: None,
        announce: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.runner = runner
        self.models = models
        self._guides = Guides()
        self._inside = InsideView(runner, models, observe)
        self._porter = Porter(inbox, models.settings.timeout_s, self._inside.refused)
        models.while_held_up = lambda: self._porter.standing_in(self._end_late)
        runner.meanwhile = self._go_round
        self._stepper = Stepper(runner, self._guides, self._inside.step, inbox.flush)
        self.supervise = supervise
        self.announce = announce
        self._running = Running(self._inside.refused, self._stepper.forget, self._freed)
        self._waiting = WaitingRoom(models.settings.max_queue)
        self._retry_due = False
        self.ending = Ending(drain_timeout_s, self._running, announce)
        self._take_over = TakeOver(models, self._running.fail_all)
        ends = self._check_open, self._leave, lambda: self.ending.at
        self._cluster = ClusterOps(models, inbox, *ends, self._take_over)
        self._unchecked: set[HostedModel] = set()  # that worked since their block accounting was checked

    def run(self) -> None:
        """Serve until a note or `stop` ends it, then tell all ranks to leave. Rank 0, main thread."""
        next_look = 0.0
        while not self.ending.over(bool(self._running)):
            self._take_messages(wait_s=0.0 if self._running or self.models.loading else _IDLE_POLL_S)
            self.runner.background.look()
            for note in self.runner.comm.notes():
                self.ending.take(note)
                self._refuse_waiting()
            if (now := time.monotonic()) >= next_look:
                next_look = now + 0.1
                self.supervise()
                self.models.expire(now)
                self._porter.at_hand = None  # what was acted on last may be answered
                self._retry_due |= self.ending.at is None and self._take_over.look(now)
                self._end_late(now)
            if self.models.loading and self.models.go_on():
                self._retry_due = True
            self._go_round()
            self._retry()
        self._refuse_waiting()
        self._cluster.farewell(len(self._running))
        for active in self._running:
            self._running.fail(active, "shutdown", _SHUTDOWN_TEXT)
        self._guides.close()
        self._inside.save_trace(self.announce)
        self.runner.lead(Stop())

    def _leave(self, timeout_s: float) -> None:
        """Take no new work and end when all running requests are done, after so many seconds at the latest."""
        self.ending.drain(timeout_s)
        self._refuse_waiting()

    def num_refused(self) -> int:
        """Return how many requests never began; for any thread."""
        return self._inside.refused.total()

    def _take_messages(self, wait_s: float, most: float = math.inf) -> None:
        """Act on every message that is there, or so many; wait for the first one for at most wait_s."""
        while most > 0 and (taken := self._porter.get(wait_s)) is not None:
            self._handle(taken)
            wait_s, most = 0.0, most - 1

    def _handle(self, taken: Waiting) -> None:
        """Act on one message; an error goes back to its sender and harms nobody else."""
        self._porter.at_hand = taken
        try:
            try:
                self._act(taken.client, taken.message, taken.deadline)
            except NotYet as e:
                self._waiting.add(replace(taken, names=e.names))
        except Answered:
            return
        except OllampiError as e:
            if self._porter.at_hand is not None:
                self._inside.refused[code_of(e)] += taken.message.get("op") not in COMMANDS
                taken.refuse(code_of(e), str(e))

    def _act(self, client: Client, message: Message, deadline: float) -> None:
        """Act on one message; raise OllampiError for its sender, NotYet where it must wait."""
        op, number = message.get("op"), message.get("id", 0)
        began = message.setdefault("began", time.monotonic())  # it may come to this again
        if op == "generate":
            self._generate(client, number, GenerateRequest.from_wire(message["request"]), deadline, began)
        elif op == "embed":
            self._embed(client, number, EmbedRequest.from_wire(message["request"]), deadline, began)
        elif op == "metrics":
            client.post({"id": number, "kind": "metrics", "samples": self._inside.samples(len(self._waiting))})
        elif op == "log_level":
            self.runner.lead(LogFrom(message["level"]))
            client.post({"id": number, "kind": "log_level"})
        elif op == "cancel":
            self._cancel(client, number, message.get("reason", "cancel"))
        elif op == "gone":
            self._forget(client)
        else:
            self._cluster.act(client, message)

    def _generate(self, client: Client, number: int, request: GenerateRequest, deadline: float, began: float) -> None:
        """Queue a request, loading its model first where needed."""
        model = self._model(request.model, request.context, request.prompt)
        check_tokens(model.config, request)
        seed = request.sampling.seed if request.sampling.seed is not None else secrets.randbits(63)
        sequence = Sequence(request, context=min(request.context or model.context, model.context), seed=seed)
        sequence.load_ns = int((time.monotonic() - began) * 1e9)
        model.scheduler.add(sequence)
        sequence.guide = self._guides.open(request, model.config.vocab_size)
        model.keep(request.keep_alive_s)
        meter = RequestMeter(model.counts, len(request.prompt), sequence.arrived, model.outcomes)
        self._running.add(Active({sequence: 0}, client, number, model, meter, deadline), [sequence])

    def _embed(self, client: Client, number: int, request: EmbedRequest, deadline: float, began: float) -> None:
        """Queue the inputs of an embedding request, loading its model first where needed."""
        model = self._model(request.model, request.context)
        inputs = Inputs(request, model, began)
        first = inputs.start()
        meter = RequestMeter(model.counts, inputs.num_tokens, began, model.outcomes)
        self._running.add(Active(inputs.queued, client, number, model, meter, deadline, inputs), first)
        model.keep(request.keep_alive_s)

    def _model(self, ref: ModelRef, context: int | None, prompt: Series[int] = ()) -> HostedModel:
        """Return a replica in memory that takes a prompt; raise as `_check_open`, and NotYet as Models does."""
        self._check_open(ref)
        return self.models.get(ref, context, prompt)

    def _check_open(self, ref: ModelRef) -> None:
        """Raise NotYet where an earlier request for a model waits, ShutdownError once the server is about to end."""
        if self.ending.at is not None:
            raise ShutdownError(_SHUTDOWN_TEXT)
        if self._waiting.concerns(ref.name):
            raise NotYet({ref.name})

    def _retry(self) -> None:
        """Take the messages that wait again, in order and before all others, where a request has ended since."""
        if self._retry_due:
            waiting, self._retry_due = self._waiting.empty(), False
            self._porter.put_back(waiting)
            self._take_messages(0.0, len(waiting))
        self.models.forget_failures()

    def _end_late(self, now: float) -> None:
        """End the requests whose deadline has passed; in another thread while a load holds this one up."""
        for waiting in self._waiting.late(now):
            self._porter.refuse_late(waiting)
            self._retry_due = True
        for active in [a for a in self._running if a.deadline <= now]:
            self._running.fail(active, "timeout", LATE_TEXT)

    def _refuse_waiting(self) -> None:
        """Answer the messages that wait: the server is about to end."""
        self._inside.refused["shutdown"] += self._waiting.refuse("shutdown", _SHUTDOWN_TEXT)

    def _cancel(self, client: Client, number: int, reason: str) -> None:
        """Drop a request, to be counted under a reason; one that has ended already is ignored."""
        active = self._running.get(client, number)
        if active is not None:
            self._running.complete(active, reason if reason in ("stop", "length") else "cancel")
        elif self._waiting.drop(client, number):
            self._retry_due = True
            client.post({"id": number, "kind": "done", "reason": "cancel", "usage": asdict(Usage())})

    def _forget(self, client: Client) -> None:
        """Drop all requests of a client that is gone."""
        self._waiting.drop(client)
        self._retry_due = True
        for active in [a for a in self._running if a.client is client]:
            self._running.end(active, "cancel")

    def _freed(self) -> None:
        """Have the messages that wait looked at again: a request has ended."""
        self._retry_due = True

    def _go_round(self) -> None:
        """Make one step of every model that has work; leave some time to what is read beside that."""
        began = time.monotonic()
        moved = self._step_all()
        if not moved and (self.models.loading or self.runner.background.busy):
            time.sleep(_REPLY_POLL_S)
        elif self.runner.background.busy or self.models.shares_ranks(self.models.busy()):
            time.sleep(share_s(time.monotonic() - began))

    def _step_all(self) -> bool:
        """Make one step of every model that has work, and return whether there was any, else check the accounting."""
        if not self._running:
            self._unchecked = {model for model in self._unchecked if not model.scheduler.check()}
        self._settle()
        busy = self.models.busy()
        moved = self._stepper.turn(busy, self._deliver)
        self._unchecked.update(busy)
        if self._guides and not moved:
            self._guides.wait(_GUIDE_POLL_S)
        elif not moved and self.runner.replies.num_expected and self.models.loading is None:
            self.runner.replies.wait(_REPLY_POLL_S)
        return moved

    def _settle(self) -> None:
        """End the requests whose grammars are complete, refused or failed."""
        if not self._guides:
            return
        self._guides.collect()
        over = [(a, s.guide) for s, a in self._running.sequences if s.guide is not None and s.guide.over]
        for active, guide in over:
            if guide.error is not None:
                self._running.fail(active, *guide.error)
            else:
                self._running.complete(active, "stop")

    def _deliver(self, progress: Progress) -> None:
        """Tell a sequence's client what a step brought, and end it where it is complete or cannot go on."""
        sequence = progress.sequence
        active = self._running.owner(sequence)
        if active is None:  # another sequence of its request has failed in this step
            return
        if progress.error is not None:
            self._running.fail(active, "internal", progress.error, spoilt=True)
        elif progress.embedding is not None:
            self._running.drop(sequence)
            self._running.queue(active, active.take_embedding(sequence, progress.embedding.tobytes()))
            if not active.queued:
                self._running.complete(active, "stop")
        else:
            active.take_tokens(progress.tokens, progress.logprobs, sequence.num_generated)
            if sequence.finish_reason is not None:
                self._running.complete(active, sequence.finish_reason)
