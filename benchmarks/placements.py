"""Place models on groups of ranks at random while clients ask, and compare every answer with a lone model's.

    python benchmarks/placements.py [--ranks 3] [--minutes 5] [--clients 32] [--seed 1] [--plain] [--role coordinator]
    python benchmarks/placements.py --cycles 1000 [--failing] [--ranks 3]
    python benchmarks/placements.py --groups 2500 [--ranks 3]

Two models; each has up to three replicas, on groups that overlap. Placements change, and models leave, all the time;
some changes cannot be, some clients leave or want their answer too soon. Steps are computed with deterministic=true, so
that an answer does not depend on how a model is cut; --plain does without, in fp32. An answer that differs, an error
that such a request must not have, or a rank that the watchdog finds missing ends the run with 1.
With --cycles a model is only loaded on groups and unloaded again; with --failing, before each of these, another one
that cannot be loaded: its file is cut off, is cut or gone while it is read, or memory is too short. Printed is what the
ranks hold, and by how much that grows over the last half. --groups makes groups and frees them, without models.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from own_job import run_ranks
from placement_crowd import Crowd, group
from placement_cycles import Broken, Cycles, Growth

from ollampi.launcher.assemble import communicator, runner
from ollampi.launcher.config import compose_config
from ollampi.mpiruntime.ending import END
from ollampi.mpiruntime.engine import Engine
from ollampi.mpiruntime.hosted import Models
from ollampi.mpiruntime.mpi import Mpi
from ollampi.mpiruntime.reading import Files
from ollampi.mpiruntime.runner import Runner

ROOT = Path(__file__).resolve().parent.parent
DEMO = ROOT / "conf/models/demo"
WEIGHTS = "model.safetensors"
HUGE = 1 << 36  # tokens of context


def crowd(made: Runner, models: Models, args: Any) -> int:
    """Return the status of a run with clients. Rank 0 only."""
    folders = {"a": DEMO, "b": Path(args.folder, "second")}
    broken = Path(args.folder, "torn")
    client = Crowd(folders, broken, list(models.usable), args.clients, args.minutes * 60, args.seed)

    def supervise() -> None:
        client.change()
        if client.over and not client.open:
            for placed in models.placed():
                models.unload_when_idle(placed.ref.name)
            made.comm.notify(END)

    Engine(made, models, client, drain_timeout_s=1, supervise=supervise).run()
    spent = time.monotonic() - (client.began or time.monotonic())
    told = ", ".join(f"{name} {count}" for name, count in sorted(client.outcomes.items()))
    print(f"{made.comm.size} ranks, {args.clients} clients, {spent:.0f} s: {told}", flush=True)
    print(*(client.wrong[:5] or ["every answer is that of a lone model"]), sep="\n", flush=True)
    print(f"groups left on rank 0: {len(made.groups)}; models left: {len(models.placed())}", flush=True)
    return 1 if client.wrong or len(made.groups) > 1 else 0


def cycle(made: Runner, models: Models, pids: list[int], args: Any) -> int:
    """Return the status of loads and unloads. Rank 0 only."""
    growth = Growth(pids)
    client = Cycles(DEMO, Broken(Path(args.folder)) if args.failing else None, growth, args.cycles, args.seed)
    client.settle = made.lead_report  # ranks answer it when they have done what came before

    def supervise() -> None:
        if client.over:
            made.comm.notify(END)

    Engine(made, models, client, drain_timeout_s=1, supervise=supervise).run()
    print(*growth.told([f"rank {rank}" for rank in range(len(pids))]), sep="\n")
    failed = ", ".join(f"{name} {count}" for name, count in client.refused.items()) or "none"
    print(
        f"{client.done} cycles; placements on several ranks but not all: {client.groups}; loads that failed: {failed}"
    )
    print(client.failed or f"groups left on rank 0: {len(made.groups)}", flush=True)
    return 1 if client.failed or len(made.groups) > 1 else 0


def groups(made: Runner, pids: list[int], args: Any) -> int:
    """Return the status of making groups and freeing them; collective, every rank draws the same ones."""
    draw, began, growth = random.Random(args.seed), time.monotonic(), Growth(pids)
    count = several = 0
    while several < args.groups:
        ranks = group(draw, list(range(made.comm.size)))
        if made.comm.rank in ranks:
            made.groups.leave(made.groups.enter(ranks))
        count, several = count + 1, several + (1 < len(ranks) < made.comm.size)
        if count % 100 == 0:
            made.comm.collect(b"")
            if made.comm.rank == 0:
                growth.look(count)
    if made.comm.rank == 0:
        print(*growth.told([f"rank {rank}" for rank in range(len(pids))]), sep="\n")
        print(f"{several} groups of several ranks made and freed, {time.monotonic() - began:.0f} s", flush=True)
    return 0


def run_rank(args: Any) -> int:
    """Return the exit status of one rank."""
    comm = communicator()
    sizes = ["engine.context_length=128", "engine.cache_tokens=4096", "engine.max_loaded_models=3"]
    given = [*sizes, "threads=1", "dtype=float32", f"cluster.node_role={args.role}", *args.set]
    config = compose_config([*given, f"deterministic={str(not args.plain).lower()}"], {})
    made, told = runner(comm, config)
    pids = [int(pid) for pid in comm.collect(str(os.getpid()).encode())]
    spoil()
    status = 0
    if comm.rank == 0:
        print(told, flush=True)
    if args.groups:
        status = groups(made, pids, args)
    elif comm.rank:
        made.follow()
    else:
        models = Models(made, config.engine, cluster=config.cluster)
        status = cycle(made, models, pids, args) if args.cycles else crowd(made, models, args)
    if isinstance(comm, Mpi):
        comm.finish()
    return status


def spoil() -> None:
    """Have files be cut, or go, while this rank reads them, where their folders are called so."""
    plain = Files.fill

    def fill(self: Files, out: Any, path: Path, offset: int, name: str) -> None:
        if path.parent.name == "vanishing":
            path.unlink(missing_ok=True)
        elif path.parent.name == "cut" and self.bytes_read and path.stat().st_size > offset:
            os.truncate(path, offset + len(out) // 2)
        plain(self, out, path, offset, name)

    Files.fill = fill  # type: ignore[method-assign]


def write_models(folder: Path) -> None:
    """Write what is loaded beside the demo model: another model, and some that cannot be loaded."""
    sys.path.insert(0, str(ROOT / "tests"))
    from support.checkpoints import write_checkpoint

    write_checkpoint(folder / "second")
    for name in ("torn", "cut", "vanishing", "huge"):
        shutil.copytree(DEMO, folder / name)
    os.truncate(folder / "torn" / WEIGHTS, (DEMO / WEIGHTS).stat().st_size // 2)
    path = folder / "huge" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "max_position_embeddings": HUGE}))


def main() -> None:
    """Run what the arguments ask for in a job of its own."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ranks", type=int, default=3)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--cycles", type=int, default=0)
    parser.add_argument("--failing", action="store_true", help="have a load fail before each cycle")
    parser.add_argument("--groups", type=int, default=0, help="how many groups of several ranks to make and free")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--plain", action="store_true", help="compute without deterministic=true")
    parser.add_argument("--role", default="mixed", help="cluster.node_role: mixed or coordinator")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="any other setting")
    parser.add_argument("--folder", default="", help="where the models are; used by the ranks")
    parser.add_argument("--rank", action="store_true", help="run as one rank; used by the above")
    args = parser.parse_args()
    if args.rank:
        sys.exit(run_rank(args))
    with tempfile.TemporaryDirectory() as folder:
        write_models(Path(folder))
        sys.exit(run_ranks(args.ranks, __file__, [*sys.argv[1:], "--folder", folder]))


if __name__ == "__main__":
    main()
