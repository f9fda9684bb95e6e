"""Print the gaps between the tokens of streams, without loads and while a model is loaded and unloaded on their ranks.

    python benchmarks/gaps.py [--ranks 2] [--threads 1] [--streams 4] [--loads 4] [--quantize none] [--layers 16]
        [--model FOLDER]

Streams of the demo model run on all ranks, a new answer behind each that ends. After some seconds a random model of
1.04 billion weights in bf16 (or --model) is loaded on the same ranks and unloaded, --loads times, then the streams go
on as long as all that took. A gap is the time between two tokens of one answer, as the engine posts them. What a shared
machine adds is in both lines.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from own_job import run_ranks

from ollampi.launcher.assemble import communicator, runner
from ollampi.launcher.config import compose_config
from ollampi.mpiruntime.ending import END
from ollampi.mpiruntime.engine import Engine
from ollampi.mpiruntime.hosted import Models
from ollampi.mpiruntime.inbox import Event, Local
from ollampi.mpiruntime.mpi import Mpi
from ollampi.mpiruntime.request import GenerateRequest, ModelRef, Sampling

ROOT = Path(__file__).resolve().parent.parent
DEMO = ROOT / "conf/models/demo"
QUIET_S, ANSWER = 3.0, 100
LOAD, UNLOAD = -1, -2


class Streams(Local):
    """Clients whose streams never pause, and one that loads and unloads.

    gaps: in seconds, without loads and with; steps: what the loads and unloads took, in seconds.
    """

    def __init__(self, other: Path, streams: int, loads: int) -> None:
        super().__init__()
        self.other, self.loads = {"name": "other", "path": str(other)}, loads
        self.gaps: dict[str, list[tuple[float, float]]] = {"without loads": [], "while loading": []}
        self.last: dict[int, float] = {}
        self.began = self.switched = time.monotonic()
        self.phase, self.done, self.took_s, self.number = "without loads", 0, 0.0, 0
        self.asked_s, self.load_s, self.unload_s = 0.0, list[float](), list[float]()
        self.failed = ""
        for _ in range(streams):
            self.ask()

    def ask(self) -> None:
        """Ask for an answer."""
        self.number += 1
        sampling = Sampling(temperature=1.0, seed=self.number)
        request = GenerateRequest(ModelRef("demo", str(DEMO)), [5, 6, 7], sampling, max_tokens=ANSWER)
        self.messages.put({"op": "generate", "id": self.number, "request": request.to_wire()})

    def tell(self, op: str, number: int) -> None:
        """Load or unload the other model."""
        self.asked_s = time.monotonic()
        self.messages.put({"op": op, "id": number, "model": self.other, "context": None, "keep_alive_s": -1.0})

    def post(self, event: Event) -> None:
        """Note a gap; go on behind the end of an answer, a load or an unload."""
        number, now = event["id"], time.monotonic()
        if event["kind"] == "error" and event["code"] != "shutdown":
            self.failed = event["message"]
        elif number in (LOAD, UNLOAD):
            (self.load_s if number == LOAD else self.unload_s).append(now - self.asked_s)
            self.next(number)
        elif event["kind"] == "tokens":
            if number in self.last:
                self.gaps[self.phase].append((now - self.last[number], now - self.began))
            self.last[number] = now
        elif event["kind"] == "done":
            self.last.pop(number, None)
            self.ask()

    def next(self, number: int) -> None:
        """Go on behind a load or an unload."""
        if number == LOAD:
            self.tell("unload", UNLOAD)
        elif self.done + 1 < self.loads:
            self.done += 1
            self.tell("load", LOAD)
        else:
            self.done = self.loads
            self.took_s, self.switched, self.phase = time.monotonic() - self.switched, time.monotonic(), "without loads"

    def look(self) -> bool:
        """Begin with the loads where it is time; return whether all is over."""
        spent = time.monotonic() - self.switched
        if self.phase == "without loads" and not self.took_s and self.gaps[self.phase] and spent > QUIET_S:
            self.phase, self.switched = "while loading", time.monotonic()
            self.tell("load", LOAD)
        return bool(self.failed) or (self.done == self.loads and spent > self.took_s)


def told(name: str, gaps: list[tuple[float, float]]) -> str:
    """Return the gaps in words."""
    sizes = sorted(gap for gap, _ in gaps)
    parts = [f"{share}% {1e3 * sizes[int(share / 100 * (len(sizes) - 1))]:.1f}" for share in (50, 99, 99.9)]
    over = sum(gap > 0.05 for gap in sizes)
    return f"{name}: {len(sizes)} gaps in ms: {', '.join(parts)}, largest {1e3 * sizes[-1]:.1f}; {over} over 50 ms"


def run_rank(args: Any) -> int:
    """Return the exit status of one rank."""
    comm = communicator()
    sizes = ["engine.context_length=128", "engine.cache_tokens=4096", "engine.max_loaded_models=2"]
    config = compose_config([*sizes, f"threads={args.threads}", f"quantize={args.quantize}"], {})
    made, _ = runner(comm, config)
    status = 0
    if comm.rank:
        made.follow()
    else:
        models = Models(made, config.engine, cluster=config.cluster)
        models.pin(ModelRef("demo", str(DEMO)))
        client = Streams(Path(args.model), args.streams, args.loads)

        def supervise() -> None:
            if client.look():
                comm.notify(END)

        Engine(made, models, client, drain_timeout_s=0, supervise=supervise).run()
        print(f"{comm.size} ranks, {args.streams} streams, {args.loads} loads, quantize={args.quantize}")
        print(*(told(*item) for item in client.gaps.items()), sep="\n")
        for name, seconds in (("loads", client.load_s), ("unloads", client.unload_s)):
            print(f"{name}: {' '.join(f'{s:.2f}' for s in seconds)} s")
        print(client.failed, flush=True)
        status = 1 if client.failed else 0
    if isinstance(comm, Mpi):
        comm.finish()
    return status


def main() -> None:
    """Run what the arguments ask for in a job of its own."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--streams", type=int, default=4)
    parser.add_argument("--loads", type=int, default=4)
    parser.add_argument("--quantize", default="none")
    parser.add_argument("--model", default="", help="the folder of the model that comes and goes")
    parser.add_argument("--layers", type=int, default=16, help="of the random model")
    parser.add_argument("--folder", default="", help="where the random model is kept")
    parser.add_argument("--rank", action="store_true", help="run as one rank; used by the above")
    args = parser.parse_args()
    if args.rank:
        sys.exit(run_rank(args))
    sys.path.insert(0, str(ROOT / "tests"))
    from large_model import Size, large_model

    with tempfile.TemporaryDirectory() as folder:
        size = Size(layers=args.layers)
        model = args.model or str(large_model(Path(args.folder or folder), size, f"large-{args.layers}"))
        sys.exit(run_ranks(args.ranks, __file__, [*sys.argv[1:], "--model", model]))


if __name__ == "__main__":
    main()
