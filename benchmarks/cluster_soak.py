"""Place models of a real server by HTTP while clients ask, or load and unload only; see answers, and what is held.

    python benchmarks/cluster_soak.py [--ranks 3] [--minutes 1] [--clients 8] [--role coordinator] [--balancing random]
    python benchmarks/cluster_soak.py --cycles 300 [--ranks 2]

Two models; copies of them are placed on nodes, cut over nodes, and unloaded, at random; at the end the job is drained
while all clients ask. Steps are computed with deterministic=true, so every answer must be the first one's, of one copy
alone. An answer that differs, or a status that is not documented for such a request, ends the run with 1. With --cycles
a model is loaded by a request with keep_alive 0 and by the cluster's routes; printed is what each process holds.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

from placement_cycles import LOOKS, TOLD, Growth

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from support import servers  # noqa: E402
from support.servers import Server, descendants, endless_model, server, wait_until  # noqa: E402

AT = "/api/cluster"
MODELS, PROMPTS, ANSWER = ("demo", "endless"), ("import os", "class A(", "def f(x):\n    return", "for i in"), 16
PAUSE_S, CONTEXT = 0.3, 256
SETTINGS = (f"engine.context_length={CONTEXT}", "engine.cache_tokens=4096", "deterministic=true", "dtype=float32")


class Soak:
    """Clients of a server, and one that places its models; nodes: those that hold weights."""

    def __init__(self, job: Server, nodes: list[str], seed: int) -> None:
        self.job, self.nodes = job, nodes
        self.draw = random.Random(seed)
        self.outcomes: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.over = self.leaving = False
        self.expected: dict[tuple[str, str], str] = {}

    def text(self, model: str, prompt: str) -> tuple[int, Any]:
        """Return the status of a greedy answer, and the answer or the error."""
        options = {"temperature": 0, "num_predict": ANSWER}
        body = {"model": model, "prompt": prompt, "raw": True, "stream": False, "options": options}
        status, answer = self.job.request("POST", "/api/generate", body, 300)
        return status, answer.get("response", answer.get("error"))

    def learn(self) -> None:
        """Have each model answer alone on the first node."""
        for model in MODELS:
            self.post("load", {"model": model, "node_ids": self.nodes[:1]}, 200)
            self.expected |= {(model, prompt): self.text(model, prompt)[1] for prompt in PROMPTS}

    def post(self, what: str, body: dict[str, Any], *allowed: int) -> None:
        """Send a request about a placement, and count how it ended."""
        status, answer = self.job.request("POST", f"{AT}/model/{what}", body, 300)
        self.outcomes[f"{what} {status}"] += 1
        if status not in allowed:
            self.wrong.append(f"{what} {body}: {status} {answer}")

    def ask(self, seed: int) -> None:
        """Ask one thing after another until the time is over, or the server takes no more."""
        draw = random.Random(seed)
        while not self.over:
            key = draw.choice(list(self.expected))
            try:
                status, answer = self.text(*key)
            except OSError as e:
                if not self.leaving:
                    self.wrong.append(f"{key}: {e!r}")
                return
            self.outcomes[f"answer {status}"] += 1
            if status == 503 and self.leaving:
                return
            if (status, answer) != (200, self.expected[key]):
                self.wrong.append(f"{key}: {status} {answer!r} in the place of {self.expected[key]!r}")

    def change(self) -> None:
        """Place or unload a model at random."""
        model = self.draw.choice(MODELS)
        if self.draw.random() < 0.2:
            self.post("unload", {"model": model}, 200, 404, 409)
        else:
            some = sorted(self.draw.sample(self.nodes, self.draw.randint(1, len(self.nodes))))
            self.post("load", {"model": model, "node_ids": some, "distributed": self.draw.random() < 0.4}, 200, 409)

    def run(self, clients: int, seconds: float) -> None:
        """Have clients ask for some time, then have the job leave beside them."""
        threads = [threading.Thread(target=self.ask, args=(seed,)) for seed in range(clients)]
        for thread in threads:
            thread.start()
        end = time.monotonic() + seconds
        while time.monotonic() < end and not self.wrong:
            self.change()
            time.sleep(PAUSE_S)
        instances = self.job.request("GET", "/api/v1/proxy/instances")[1]["instances"]
        told = ", ".join(f"{i['id']} {i['request_count']}" for i in instances)
        print(f"requests of the replicas that are there: {told}", flush=True)
        self.leaving = True
        status, answer = self.job.request("POST", f"{AT}/leave", {"graceful": True, "timeout": 120}, 300)
        self.outcomes[f"leave {status}"] += 1
        if answer.get("message") != "Node successfully left the cluster":
            self.wrong.append(f"leave: {answer}")
        self.over = True
        for thread in threads:
            thread.join()
        if (code := self.job.process.wait(60)) != 0:
            self.wrong.append(f"the job ended with status {code}")


def cycle(job: Server, cycles: int, nodes: list[str], seed: int) -> int:
    """Return the status of loads and unloads."""
    draw = random.Random(seed)
    front, ranks = [pid for pid in descendants(job.process.pid) if b"ollampi.api.front" in _line(pid)], job.ranks()
    growth = Growth([*front, *ranks])
    names = [*["HTTP process"] * len(front), *[f"rank {rank}" for rank in range(len(ranks))]]
    for done in range(1, cycles + 1):
        body = {"model": "endless", "prompt": "import", "keep_alive": 0, "stream": False, "options": {"num_predict": 2}}
        assert job.request("POST", "/api/generate", body)[0] == 200
        wait_until(lambda: len(job.request("GET", "/api/ps")[1]["models"]) == 1, 60, "the model to leave")
        some = sorted(draw.sample(nodes, draw.randint(1, len(nodes))))
        placed = {"model": "endless", "node_ids": some, "distributed": draw.random() < 0.5}
        assert job.request("POST", f"{AT}/model/load", placed)[0] == 200
        assert job.request("POST", f"{AT}/model/unload", {"model": "endless"})[0] == 200
        every = max(1, cycles // LOOKS)
        if done % every == 0:
            wait_until(lambda: job.request("GET", "/metrics")[0] == 200, 60, "the metrics of all ranks")
            words = growth.look(done)
            if done % (every * max(1, LOOKS // TOLD)) == 0:
                print(f"{done} cycles: {words}", flush=True)
    print(*growth.told(names), sep="\n")
    left = [path.name for path in Path("/dev/shm").glob("ollampi-*")]
    print(
        f"{cycles} cycles, {2 * cycles} loads and unloads; names in /dev/shm: {', '.join(left) or 'none'}", flush=True
    )
    return 0


def _line(pid: int) -> bytes:
    """Return the command line of a process, nothing where it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def main() -> None:
    """Run what the arguments ask for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ranks", type=int, default=3)
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--cycles", type=int, default=0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--role", default="mixed", help="cluster.node_role")
    parser.add_argument("--balancing", default="least_connections", help="cluster.load_balancing")
    args = parser.parse_args()
    servers.READY_S = 300.0  # on a machine that is busy with other things
    with tempfile.TemporaryDirectory() as folder:
        models = f"model_folders=[{endless_model(Path(folder))}]"
        how = f"cluster.node_role={args.role}", f"cluster.load_balancing={args.balancing}"
        with server(args.ranks, Path(folder), *SETTINGS, models, *how) as job:
            nodes = [n["id"] for n in job.request("GET", f"{AT}/nodes")[1]["nodes"] if n["role"] != "coordinator"]
            if args.cycles:
                sys.exit(cycle(job, args.cycles, nodes, args.seed))
            soak = Soak(job, nodes, args.seed)
            soak.learn()
            soak.run(args.clients, args.minutes * 60)
            told = ", ".join(f"{name}: {count}" for name, count in sorted(soak.outcomes.items()))
            print(f"{args.ranks} ranks, {args.role}, {args.balancing}: {told}", flush=True)
            print(*(soak.wrong[:5] or ["every answer is that of a copy alone"]), sep="\n", flush=True)
            if soak.wrong:
                print(job.log.read_text()[-2000:], flush=True)
            sys.exit(1 if soak.wrong else 0)


if __name__ == "__main__":
    main()
