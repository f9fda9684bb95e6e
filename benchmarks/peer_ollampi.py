"""This runtime as a contestant, one rank: `peer_ollampi.py MODEL_FOLDER [key=value ...]`, under mpirun or without.

The engine with all that a request meets but HTTP: queue, scheduler, steps over all ranks, sampling.
"""

from __future__ import annotations

import gc
import os
import sys
import threading
import time
from pathlib import Path

from contestant import Times, serve_turns

from ollampi.kernels.quantised import stored_bytes
from ollampi.launcher import assemble
from ollampi.launcher.config import compose_config
from ollampi.mpiruntime.communicator import Communicator
from ollampi.mpiruntime.ending import END
from ollampi.mpiruntime.engine import Engine
from ollampi.mpiruntime.hosted import Models
from ollampi.mpiruntime.hosted_model import HostedModel
from ollampi.mpiruntime.inbox import Event, Local
from ollampi.mpiruntime.lifetime import die_with
from ollampi.mpiruntime.memory import BITS, ITEM_BYTES
from ollampi.mpiruntime.mpi import Mpi, launched_size
from ollampi.mpiruntime.request import GenerateRequest, ModelRef, Sampling
from ollampi.mpiruntime.runner import Runner

SETTINGS = ["engine.context_length=1024", "engine.cache_tokens=16384", "engine.max_drafts=0"]


class Client(Local):
    """Asks from a thread of its own, which sleeps until the last answer is complete."""

    def __init__(self, comm: Communicator, hosted: HostedModel) -> None:
        super().__init__()
        self.comm = comm
        self.model = hosted.ref
        self.vocab_size = hosted.config.vocab_size
        self.facts = {"read_bytes": read_bytes(hosted)}
        self._times: Times = []
        self._open = 0
        self._done = threading.Event()

    def answer(self, prompts: list[list[int]], tokens: int) -> Times:
        """Return when each token was there."""
        self._times, self._open = [[] for _ in prompts], len(prompts)
        self._done.clear()
        for number, prompt in enumerate(prompts):
            request = GenerateRequest(self.model, prompt, Sampling(temperature=0), max_tokens=tokens)
            self.messages.put({"op": "generate", "id": number, "request": request.to_wire()})
        self._done.wait()
        return self._times

    def post(self, event: Event) -> None:
        """Note when tokens came; called by the engine's thread."""
        if event["kind"] == "tokens":
            self._times[event["id"]] += [time.perf_counter()] * len(event["tokens"])
            return
        if event["kind"] == "error":
            print(event["message"], flush=True)
            self.comm.notify(END)
        self._open -= 1
        if not self._open:
            self._done.set()

    def run(self) -> None:
        """Serve turns, then end the engine."""
        try:
            serve_turns(self)
        finally:
            self.comm.notify(END)


def read_bytes(hosted: HostedModel) -> int:
    """Return the bytes of weights that all ranks read for one token: all but the input table, where it is another."""
    config, bits = hosted.config, BITS.get(hosted.settings.quantize)
    total = sum(report.weight_bytes for report in hosted.reports)
    if config.tied_embeddings:
        return total
    if bits is None:
        return total - config.vocab_size * config.width * ITEM_BYTES[hosted.dtype]
    return total - stored_bytes(config.vocab_size, config.width, bits)


def run_client(runner: Runner, models: Models, client: Client) -> None:
    """Serve a client that runs in a thread of its own, until it ends the engine. Rank 0 only."""
    gc.freeze()  # as serve does
    threading.Thread(target=client.run, daemon=True).start()
    Engine(runner, models, client, drain_timeout_s=1).run()


def main() -> None:
    """Serve turns on rank 0, follow on the others."""
    folder = Path(sys.argv[1])
    if launched_size(os.environ) is not None:
        die_with(os.getppid())
    comm = assemble.communicator()
    config = compose_config([*SETTINGS, *sys.argv[2:]], {})
    runner, exchange = assemble.runner(comm, config)
    if config.pin:
        os.sched_setaffinity(0, runner.facts[comm.rank].cores)
    if comm.rank == 0:
        print(exchange, runner.choice, sep="\n", file=sys.stderr)
    if comm.rank:
        runner.follow()
    else:
        models = Models(runner, config.engine)
        client = Client(comm, models.pin(ModelRef("peers:latest", str(folder))))
        run_client(runner, models, client)
    if isinstance(comm, Mpi):
        comm.finish()


if __name__ == "__main__":
    main()
