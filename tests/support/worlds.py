"""Run the runtime on any world: what rank 0 leads, the other ranks follow."""

from __future__ import annotations

from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch

from ollampi.mpiruntime.cluster_settings import ClusterSettings
from ollampi.mpiruntime.communicator import Communicator
from ollampi.mpiruntime.ending import END
from ollampi.mpiruntime.engine import Engine
from ollampi.mpiruntime.engine_settings import EngineSettings
from ollampi.mpiruntime.errors import ModelError
from ollampi.mpiruntime.health import Health
from ollampi.mpiruntime.hosted import Models
from ollampi.mpiruntime.hosted_model import HostedModel
from ollampi.mpiruntime.inbox import Event, Local
from ollampi.mpiruntime.load_report import LoadReport
from ollampi.mpiruntime.replies import Reply
from ollampi.mpiruntime.request import EmbedRequest, GenerateRequest, ModelRef
from ollampi.mpiruntime.runner import Runner
from ollampi.mpiruntime.step import Chunk, Load, Step, Stop
from ollampi.mpiruntime.thread_world import run_threads
from ollampi.mpiruntime.trace import Trace
from ollampi.mpiruntime.world import survey

T = TypeVar("T")
BLOCK = 4


def lead(comm: Communicator, work: Callable[[Runner], T], **how: Any) -> T | None:
    """Return what `work` returns on rank 0 and None elsewhere; collective. how: of the runners."""
    runner = Runner(comm, survey(comm), **how)
    if comm.rank:
        runner.follow()
        return None
    try:
        return work(runner)
    finally:
        runner.lead(Stop())


def load_here(runner: Runner, load: Load) -> None:
    """Load a model where nobody leads; raise ModelError where this rank cannot. Collective over its group."""
    found = list[Reply]()
    runner.begin_load(load, found.append)
    while not found:
        runner.background.look()
    if found[0].error:
        raise ModelError(found[0].error)


def load_message(folder: Path, dtype: str = "float32", num_blocks: int = 64, context: int = 128, **fields: Any) -> Load:
    """Return the message that loads a folder as model 0."""
    return Load(0, str(folder), dtype, context, num_blocks, BLOCK, **fields)


def logits_in_pieces(runner: Runner, tokens: list[int], pieces: list[int]) -> torch.Tensor:
    """Return the logits [T, V] of tokens fed in pieces of the given lengths over blocks that are no neighbours."""
    blocks = list(range(62, 0, -2))
    start, rows = 0, []
    for length in pieces:
        needed = -(-(start + length) // BLOCK)
        step = Step(0, [Chunk(tokens[start : start + length], start, blocks[:needed], length)])
        runner.send(step)
        logits = runner.step(step).logits
        assert logits is not None
        rows.append(logits)
        start += length
    return torch.cat(rows)


def load_and_compute(
    comm: Communicator, folder: Path, tokens: list[int], pieces: list[int], sums: Communicator | None = None
) -> torch.Tensor | None:
    """Return the fp32 logits of all tokens on rank 0; collective. sums: for activations, comm without it."""

    def work(runner: Runner) -> torch.Tensor:
        runner.lead_load(load_message(folder))
        return logits_in_pieces(runner, tokens, pieces)

    return lead(comm, work, sums=sums)


def world_logits(size: int, path: Path, tokens: list[int], pieces: list[int], **fields: Any) -> torch.Tensor:
    """Return rank 0's logits [T, V] of a thread world of `size` ranks; fields: of its Load."""

    def work(runner: Runner) -> torch.Tensor:
        runner.lead_load(load_message(path, **fields))
        return logits_in_pieces(runner, tokens, pieces)

    found = run_threads(size, lambda comm: lead(comm, work))[0]
    assert found is not None
    return found


def load_reports(comm: Communicator, folder: Path, dtype: str = "float32") -> list[LoadReport] | None:
    """Return what each rank holds of a folder, on rank 0; collective."""
    return lead(comm, lambda runner: runner.lead_load(load_message(folder, dtype)))


class Recorder(Local):
    """A client that keeps all events and ends the engine when every request it made has ended.

    A message with `behind`, numbers of others, is sent when these have ended.
    """

    def __init__(self, messages: list[dict[str, Any]]) -> None:
        super().__init__()
        self.log: list[Event] = []
        self.open = {m["id"] for m in messages if m["op"] != "cancel"}
        self.later = list(messages)
        self.send()

    def send(self) -> None:
        """Send the messages behind whose others nothing is open."""
        ready = [m for m in self.later if not self.open.intersection(m.get("behind", ()))]
        self.later = [m for m in self.later if m not in ready]
        for message in ready:
            self.messages.put(message)

    def post(self, event: Event) -> None:
        """Keep the event."""
        self.log.append(event)
        if event["kind"] in ("done", "error", "loaded", "metrics", "placed", "departed", "back"):
            self.open.discard(event["id"])
            self.send()

    def tokens(self, number: int) -> list[int]:
        """Return the tokens that a request got."""
        return [t for e in self.log if e["id"] == number and e["kind"] == "tokens" for t in e["tokens"]]

    def embeddings(self, number: int) -> dict[int, torch.Tensor]:
        """Return the embeddings that a request got, by the place of their prompts."""
        events = [e for e in self.log if e["id"] == number and e["kind"] == "embedding"]
        assert len({e["place"] for e in events}) == len(events)
        return {e["place"]: torch.tensor(array("f", e["values"])) for e in events}

    def last(self, number: int) -> Event:
        """Return a request's last event."""
        return [e for e in self.log if e["id"] == number][-1]


class Scraper(Recorder):
    """A client that asks for the metrics once all its other requests have ended."""

    def __init__(self, messages: list[dict[str, Any]]) -> None:
        super().__init__(messages)
        self.open.add(-1)

    def post(self, event: Event) -> None:
        """Keep the event."""
        super().post(event)
        if self.open == {-1}:
            self.messages.put({"op": "metrics", "id": -1})

    def sample(self, name: str, **labels: str) -> Any:
        """Return the value of the one sample with this name and these labels among its own."""
        found = self.last(-1)["samples"]
        (value,) = [v for n, given, v in found if n == name and labels.items() <= given.items()]
        return value


class InStages(Recorder):
    """A client that sends the messages of each stage when all those of the one before have ended."""

    def __init__(self, *stages: list[dict[str, Any]]) -> None:
        super().__init__(stages[0])
        self._later = list(stages[1:])

    def post(self, event: Event) -> None:
        """Keep the event; send the next messages where it was the last one of a stage."""
        super().post(event)
        while not self.open and self._later:
            stage = self._later.pop(0)
            self.open = {message["id"] for message in stage if message["op"] != "cancel"}
            for message in stage:
                self.messages.put(message)


def run_engine(
    comm: Communicator,
    messages: list[dict[str, Any]],
    settings: EngineSettings,
    recorder: Recorder | None = None,
    draft: tuple[Path, Path] | None = None,
    trace: Path | None = None,
    announce: Callable[[str], None] = lambda line: None,
    cluster: ClusterSettings | None = None,
    health: Health | None = None,
    supervise: Callable[[Runner, Models], None] = lambda runner, models: None,
) -> Recorder | None:
    """Return on rank 0 what an engine answered to the messages; collective.

    draft: the folders of a model and of the one that drafts for it; health: what rank 0 knows of all ranks; supervise:
    called several times a second.
    """
    runner = Runner(comm, survey(comm), trace and Trace(trace))
    if comm.rank:
        runner.follow()
        return None
    client = recorder or Recorder(messages)

    def end_when_done() -> None:
        supervise(runner, models)
        if not client.open:
            comm.notify(END)

    runner.health = health
    models = Models(runner, settings, cluster=cluster)
    if draft is not None:
        try:
            models.pin(ModelRef("test:latest", str(draft[0])), ModelRef("draft:latest", str(draft[1])))
        except ModelError:
            runner.lead(Stop())
            raise
    Engine(runner, models, client, drain_timeout_s=5, supervise=end_when_done, announce=announce).run()
    return client


def generate(number: int, folder: Path, prompt: list[int], **fields: Any) -> dict[str, Any]:
    """Return the message that asks for a continuation."""
    request = GenerateRequest(ModelRef("test:latest", str(folder)), prompt, **fields)
    return {"op": "generate", "id": number, "request": request.to_wire()}


def named(name: str, message: dict[str, Any]) -> dict[str, Any]:
    """Return a message that asks for a continuation, for the model under another name."""
    message["request"]["model"]["name"] = name
    return message


def place(number: int, name: str, folder: Path, **wish: Any) -> dict[str, Any]:
    """Return the message that places a model."""
    model = {"name": name, "path": str(folder)}
    given = {"strategy": "auto", "shards": None, "replicas": None, "ranks": None, "context": None, **wish}
    return {"op": "place", "id": number, "model": model, "keep_alive_s": None, **given}


def leave(number: int, rank: int, timeout_s: float = 60.0) -> dict[str, Any]:
    """Return the message that takes a rank out."""
    return {"op": "leave", "id": number, "graceful": True, "timeout_s": timeout_s, "rank": rank}


def come_back(number: int, rank: int) -> dict[str, Any]:
    """Return the message that takes a rank in again."""
    return {"op": "come back", "id": number, "rank": rank}


def embed(number: int, folder: Path, prompts: list[list[int]], **fields: Any) -> dict[str, Any]:
    """Return the message that asks for embeddings."""
    request = EmbedRequest(ModelRef("test:latest", str(folder)), [array("i", p) for p in prompts], **fields)
    return {"op": "embed", "id": number, "request": request.to_wire()}


def once_loaded(folder: Path, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return messages, sent when the model of a folder is there, behind the one, of number 900, that loads it."""
    model = {"name": "test:latest", "path": str(folder)}
    load = {"op": "load", "id": 900, "model": model, "context": None, "keep_alive_s": None}
    return [load, *({**message, "behind": [900]} for message in messages)]


def loaded(models: Models, ref: ModelRef, context: int | None = None) -> HostedModel:
    """Return a replica of a model once it is there, where no engine runs."""
    return models.awaited(lambda: models.get(ref, context))
