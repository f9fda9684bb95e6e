"""Place models on groups of ranks at random while clients ask, and compare every answer with a lone model's.

    python benchmarks/placements.py [--ranks 3] [--minutes 5] [--clients 32] [--seed 1] [--plain]
    python benchmarks/placements.py --cycles 1000 [--ranks 3]

Two models; one has up to three replicas, on groups that overlap. Placements change, and models leave, every second.
Steps are computed with deterministic=true, so that an answer does not depend on how a model is cut; --plain does
without, in fp32. An answer that differs, an error, or a rank that the watchdog finds missing ends the run with 1.
With --cycles a model is only loaded on groups and unloaded again; printed is what the ranks hold.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from ollampi.launcher.assemble import communicator, runner
from ollampi.launcher.config import compose_config
from ollampi.mpiruntime.ending import END
from ollampi.mpiruntime.engine import Engine
from ollampi.mpiruntime.hosted import Models
from ollampi.mpiruntime.inbox import Event, Local
from ollampi.mpiruntime.mpi import Mpi
from ollampi.mpiruntime.request import GenerateRequest, ModelRef, Sampling
from ollampi.mpiruntime.runner import Runner

ROOT = Path(__file__).resolve().parent.parent
DEMO = ROOT / "conf/models/demo"
LENGTHS, ANSWER = (3, 20, 40), 24
CHANGE_S = 1.0
Key = tuple[str, int]


class Crowd(Local):
    """Clients that ask one thing after another; a placement changes now and then. The first answers are a lone model's.

    folders: of the models by name; ranks: how many there are; seconds: for which they ask.
    """

    def __init__(self, folders: dict[str, Path], ranks: int, clients: int, seconds: float, seed: int) -> None:
        super().__init__()
        self.folders, self.ranks, self.seconds = folders, ranks, seconds
        self.draw = random.Random(seed)
        self.expected: dict[Key, list[int]] = {}
        self.asked: dict[int, Key] = {}
        self.tokens: dict[int, list[int]] = {}
        self.outcomes: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.clients = clients
        self.number = 0
        self.began: float | None = None
        self.next_change = 0.0
        for name in folders:
            self.place(name, [[0]])
        for key in [(name, length) for name in folders for length in LENGTHS]:
            self.ask(key)

    def ask(self, key: Key) -> None:
        """Ask for the answer to one of the prompts."""
        name, length = key
        self.number += 1
        self.asked[self.number], self.tokens[self.number] = key, []
        prompt = [(7 * n + length) % 200 + 1 for n in range(length)]
        request = GenerateRequest(self.ref(name), prompt, Sampling(temperature=0), max_tokens=ANSWER)
        self.messages.put({"op": "generate", "id": self.number, "request": request.to_wire()})

    def place(self, name: str, ranks: list[list[int]]) -> None:
        """Have a model placed."""
        self.number += 1
        model = {"name": name, "path": str(self.folders[name])}
        self.messages.put(
            {"op": "place", "id": self.number, "model": model, "keep_alive_s": None, "context": None, "ranks": ranks}
        )

    def ref(self, name: str) -> ModelRef:
        """Return how a model is asked for."""
        return ModelRef(name, str(self.folders[name]))

    def post(self, event: Event) -> None:
        """Take an answer; ask the next thing behind the last of its events."""
        kind, number = event["kind"], event["id"]
        if kind == "tokens":
            self.tokens[number] += event["tokens"]
            return
        self.outcomes[kind] += 1
        if kind == "error":
            self.wrong.append(f"{event['code']}: {event['message']}")
        if number not in self.asked:
            return
        key, tokens = self.asked.pop(number), self.tokens.pop(number)
        if kind == "done" and self.expected.setdefault(key, tokens) != tokens:
            self.wrong.append(f"{key}: {tokens} in the place of {self.expected[key]}")
        if self.began is not None:
            if not self.over:
                self.ask(self.draw.choice(list(self.expected)))
        elif not self.asked:
            self.began = time.monotonic()
            for _ in range(self.clients):
                self.ask(self.draw.choice(list(self.expected)))

    @property
    def over(self) -> bool:
        """Return whether nothing more is to be asked."""
        return bool(self.wrong) or (self.began is not None and time.monotonic() - self.began > self.seconds)

    def change(self) -> None:
        """Place a model elsewhere, or unload it, once a second."""
        now = time.monotonic()
        if self.began is None or self.over or now < self.next_change:
            return
        self.next_change = now + CHANGE_S
        name = self.draw.choice(list(self.folders))
        if self.draw.random() < 0.2:
            self.number += 1
            self.messages.put({"op": "unload", "id": self.number, "model": {"name": name}})
        else:
            count = self.draw.randint(1, 3)
            self.place(name, [group(self.draw, self.ranks) for _ in range(count)])


def group(draw: random.Random, ranks: int) -> list[int]:
    """Return some ranks at random."""
    return sorted(draw.sample(range(ranks), draw.randint(1, ranks)))


class Cycles(Local):
    """One client that has a model placed on a group and unloads it, again and again; looks: what every rank holds."""

    def __init__(self, folder: Path, pids: list[int], cycles: int, seed: int) -> None:
        super().__init__()
        self.pids, self.cycles, self.draw = pids, cycles, random.Random(seed)
        self.model = {"name": "m", "path": str(folder)}
        self.done = 0
        self.failed = ""
        self.next()

    def next(self) -> None:
        """Ask for a placement."""
        ranks = [group(self.draw, len(self.pids))]
        self.messages.put({"op": "place", "id": 1, "model": self.model, "keep_alive_s": None, "ranks": ranks})

    def post(self, event: Event) -> None:
        """Go on to the next."""
        if event["kind"] == "error":
            self.failed = event["message"]
        elif event["kind"] == "placed":
            self.messages.put({"op": "unload", "id": 2, "model": self.model})
        elif event["kind"] == "done":
            self.done += 1
            if self.done % max(1, self.cycles // 10) == 0:
                print(f"{self.done} cycles: {'; '.join(held(pid) for pid in self.pids)}", flush=True)
            if not self.over:
                self.next()

    @property
    def over(self) -> bool:
        """Return whether all cycles are done, or one failed."""
        return bool(self.failed) or self.done >= self.cycles


def held(pid: int) -> str:
    """Return what a process of this host holds, in words."""
    status = Path(f"/proc/{pid}/status").read_text()
    fields = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
    memory = int(fields["RssAnon"].split()[0]) >> 10
    segments = Path(f"/proc/{pid}/maps").read_text().count("/dev/shm/ollampi")
    threads = fields["Threads"].strip()
    return f"{len(os.listdir(f'/proc/{pid}/fd'))} descriptors, {threads} threads, {segments} segments, {memory} MiB"


def crowd(made: Runner, models: Models, args: Any) -> int:
    """Return the status of a run with clients. Rank 0 only."""
    folders = {"a": DEMO, "b": Path(args.second)}
    client = Crowd(folders, made.comm.size, args.clients, args.minutes * 60, args.seed)

    def supervise() -> None:
        client.change()
        if client.over and not client.asked:
            made.comm.notify(END)

    Engine(made, models, client, drain_timeout_s=1, supervise=supervise).run()
    spent = time.monotonic() - (client.began or time.monotonic())
    print(f"{made.comm.size} ranks, {args.clients} clients, {spent:.0f} s: {dict(client.outcomes)}", flush=True)
    print(*(client.wrong[:5] or ["every answer is that of a lone model"]), sep="\n", flush=True)
    return 1 if client.wrong else 0


def cycle(made: Runner, models: Models, pids: list[int], args: Any) -> int:
    """Return the status of loads and unloads. Rank 0 only."""
    client = Cycles(DEMO, pids, args.cycles, args.seed)

    def supervise() -> None:
        if client.over:
            made.comm.notify(END)

    Engine(made, models, client, drain_timeout_s=1, supervise=supervise).run()
    print(client.failed or f"{client.done} cycles; groups left on rank 0: {len(made.groups)}", flush=True)
    return 1 if client.failed else 0


def run_rank(args: Any) -> int:
    """Return the exit status of one rank."""
    comm = communicator()
    sizes = [
        "engine.context_length=128",
        "engine.cache_tokens=4096",
        "engine.max_loaded_models=3",
        "threads=1",
        "dtype=float32",
    ]
    config = compose_config([*sizes, f"deterministic={str(not args.plain).lower()}"], {})
    made, told = runner(comm, config)
    pids = [int(pid) for pid in comm.collect(str(os.getpid()).encode())]
    status = 0
    if comm.rank:
        made.follow()
    else:
        print(told, flush=True)
        models = Models(made, config.engine, cluster=config.cluster)
        status = cycle(made, models, pids, args) if args.cycles else crowd(made, models, args)
    if isinstance(comm, Mpi):
        comm.finish()
    return status


def main() -> None:
    """Run what the arguments ask for in a job of its own."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ranks", type=int, default=3)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--cycles", type=int, default=0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--plain", action="store_true", help="compute without deterministic=true")
    parser.add_argument("--second", default="", help="the folder of the second model; used by the ranks")
    parser.add_argument("--rank", action="store_true", help="run as one rank; used by the above")
    args = parser.parse_args()
    if args.rank:
        sys.exit(run_rank(args))
    sys.path.insert(0, str(ROOT / "tests"))
    from support.checkpoints import write_checkpoint
    from support.servers import mpirun

    with tempfile.TemporaryDirectory() as folder:
        second = write_checkpoint(Path(folder) / "second")
        line, env = mpirun(args.ranks, [sys.executable, __file__, "--rank", *sys.argv[1:], "--second", str(second)])
        sys.exit(subprocess.run(line, env=env).returncode)


if __name__ == "__main__":
    main()
