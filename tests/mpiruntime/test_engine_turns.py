"""What goes out of a turn of the engine's loop, and the notes that come into it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.checkpoints import PROMPT, reference_greedy, write_checkpoint
from support.worlds import Recorder, generate, run_engine

from ollampi.mpiruntime.ending import DRAIN, END
from ollampi.mpiruntime.engine_settings import EngineSettings
from ollampi.mpiruntime.inbox import Event
from ollampi.mpiruntime.request import Sampling
from ollampi.mpiruntime.thread_world import run_threads

GREEDY = Sampling(temperature=0.0)
SETTINGS = EngineSettings(cache_tokens=128, block_size=4, max_step_tokens=16)
SIZES = (1, 3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("model"))


class Flushed(Recorder):
    """Keeps which requests had tokens in what went out together."""

    def __init__(self, messages: list[dict[str, Any]]) -> None:
        super().__init__(messages)
        self.together: list[list[int]] = [[]]

    def collect(self, event: Event) -> None:
        super().collect(event)
        self.together[-1].append(event["id"])

    def flush(self) -> None:
        if self.together[-1]:
            self.together.append([])


def test_the_tokens_of_a_step_go_out_together(folder: Path) -> None:
    messages = [generate(i, folder, PROMPT, sampling=GREEDY, max_tokens=9) for i in range(3)]
    client = Flushed(messages)
    run_threads(1, lambda c: run_engine(c, messages, SETTINGS, client))
    assert sum(map(len, client.together)) == sum(e["kind"] == "tokens" for e in client.log)
    assert all(len(set(ids)) == len(ids) for ids in client.together)
    assert client.together.count([0, 1, 2]) >= 5
    assert client.together[-1] == []


class Noter(Recorder):
    """Leaves a note at the second token of request 1, then asks for more."""

    def __init__(self, messages: list[dict[str, Any]], comm: Any, note: int) -> None:
        super().__init__(messages)
        self.comm, self.note, self.folder = comm, note, messages[0]["request"]["model"]["path"]

    def post(self, event: Event) -> None:
        super().post(event)
        if event["kind"] == "tokens" and len(self.tokens(1)) == 2:
            for _ in range(3):  # mpirun forwards a signal to every rank, and each leaves its note
                self.comm.notify(self.note)

    def get(self, timeout_s: float) -> Any:
        if len(self.tokens(1)) == 6 and 9 in self.open:
            self.messages.put(generate(9, Path(self.folder), PROMPT, max_tokens=2))
            self.open.discard(9)
        return super().get(timeout_s)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("note", [END, DRAIN])
def test_notes_end_or_drain(folder: Path, size: int, note: int) -> None:
    messages = [generate(1, folder, PROMPT, sampling=GREEDY, max_tokens=30)]
    clients: list[Noter] = []

    def work(comm: Any) -> None:
        if comm.rank == 0:
            clients.append(Noter(messages, comm, note))
            clients[0].open.add(9)
        run_engine(comm, messages, SETTINGS, clients[0] if comm.rank == 0 else None)

    run_threads(size, work)
    client = clients[0]
    if note == END:
        assert client.last(1)["code"] == "shutdown"
        assert len(client.tokens(1)) < 30
    else:
        assert client.tokens(1) == reference_greedy(folder, PROMPT, 30)
        assert client.last(9)["code"] == "shutdown"
