"""Time what users of a job wait for: its first token, and an answer again where a rank or a node is killed.

    python benchmarks/slurm_times.py [--ways pmix mpirun] [--repeats 3]

Needs root and Slurm's packages (.ci/run installs them). A Slurm of three nodes is brought up on this machine
(tests/support/slurmlab.py). Each repeat submits slurm/serve.sh on 2 nodes x 2 ranks with the demo model, and prints

    first token    from the job's start, and from `sbatch`, to an answer of one token
    rank killed    from kill -9 of rank 3 to an answer
    node killed    from kill -9 of all that the second node runs, its slurmd too, to an answer of the 2 ranks left
    drained        from USR1 with 8 streams open to the job's end, and whether all streams, the status and the endpoint
                   file were as they shall

with the lines of the job's log by second, to see where the time goes.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "tests"))

from support.servers import endless_model  # noqa: E402
from support.slurm_jobs import Job, submitted  # noqa: E402
from support.slurmlab import Slurm, lab, missing  # noqa: E402

from ollampi.launcher.endpoint import Endpoint  # noqa: E402
from ollampi.launcher.slurm_site import VARIABLE  # noqa: E402

WORDS = ["--nodes=2", "--ntasks-per-node=2", "--nodelist=n1,n2"]
STREAMS, TOKENS = 8, 60
_LONGEST_S, _LOOK_S = 120.0, 0.02


@dataclass
class Clock:
    """Says when lines came to a job's log, from when it began on; a thread of its own follows the log."""

    job: Job
    began: float = field(default_factory=time.monotonic)
    seen: list[tuple[float, str]] = field(default_factory=list)
    ended: threading.Event = field(default_factory=threading.Event)

    def follow(self) -> None:
        """Note new lines until `ended` is set."""
        count = 0
        while not self.ended.wait(_LOOK_S):
            lines = self.job.log.splitlines()
            now = time.monotonic() - self.began
            self.seen += [(now, line) for line in lines[count:]]
            count = len(lines)

    def since(self, began: float) -> str:
        """Return the lines since a time of time.monotonic(), with their seconds from it."""
        shift = began - self.began
        return "\n".join(f"    {at - shift:6.2f} s  {line[:110]}" for at, line in self.seen if at >= shift)


def seconds_until(ready: Callable[[], bool], began: float) -> float:
    """Return the seconds from `began` until ready() is so; raise TimeoutError where that takes too long."""
    while not ready():
        if time.monotonic() - began > _LONGEST_S:
            raise TimeoutError(f"nothing within {_LONGEST_S:g} s")
        time.sleep(_LOOK_S)
    return time.monotonic() - began


def token(job: Job, found: Endpoint) -> bool:
    """Return whether a request for one token is answered."""
    body = {"model": found.model, "prompt": "import", "raw": True, "stream": False, "options": {"num_predict": 1}}
    try:
        with job.ask(found, body) as response:
            return response.status == 200 and json.loads(response.read())["eval_count"] == 1
    except OSError:
        return False


def answered(job: Job, before: Endpoint | None = None) -> bool:
    """Return whether the job has an endpoint, another than `before`, that gives a token."""
    found = job.endpoint()
    return found is not None and found != before and token(job, found)


def drained(slurm: Slurm, job: Job, found: Endpoint) -> tuple[float, bool]:
    """Return the seconds of a drain with streams open, and whether it went as it shall."""
    lines: list[list[bytes]] = [[] for _ in range(STREAMS)]

    def take(mine: list[bytes]) -> None:
        body = {"model": found.model, "prompt": "import", "raw": True, "options": {"num_predict": TOKENS}}
        with job.ask(found, body) as response:
            mine.extend(response)

    threads = [threading.Thread(target=take, args=(each,)) for each in lines]
    for thread in threads:
        thread.start()
    while not all(lines):
        time.sleep(_LOOK_S)
    began = time.monotonic()
    slurm.run("scancel", "--batch", "--signal=USR1", str(job.number))
    for thread in threads:
        thread.join()
    ended = slurm.wait(job.number)
    took = time.monotonic() - began
    whole = all(json.loads(each[-1]).get("eval_count") == TOKENS for each in lines)
    return took, whole and ended["ExitCode"] == "0:0" and job.endpoint() is None


def served(slurm: Slurm, way: str, work: Path) -> dict[str, float]:
    """Return the seconds of a job's start, and of two deaths; print them with the job's log."""
    found = dict[str, float]()
    began = time.monotonic()
    with submitted(slurm, work, *WORDS, "model=demo", environ={VARIABLE: way}) as job:
        clock = Clock(job, began)
        follower = threading.Thread(target=clock.follow)
        follower.start()
        try:
            queued = seconds_until(lambda: job.state != "PENDING", began)
            found["sbatch to first token"] = seconds_until(lambda: answered(job), began)
            found["first token"] = found["sbatch to first token"] - queued
            print(f"{way}: first token after {found['first token']:.1f} s\n{clock.since(began)}", flush=True)
            for what, kill in (
                ("rank killed", lambda: os.kill(job.rank(3), signal.SIGKILL)),
                ("node killed", lambda: slurm.kill_node("n2")),
            ):
                again = partial(answered, job, job.endpoint())
                at = time.monotonic()
                kill()
                found[what] = seconds_until(again, at)
                print(f"{way}: {what}: {found[what]:.1f} s\n{clock.since(at)}", flush=True)
        finally:
            clock.ended.set()
            follower.join()
    slurm.run("scontrol", "update", "nodename=n2", "state=down", "reason=killed")
    slurm.start_node("n2")
    slurm.wait_for_nodes()
    return found


def main() -> None:
    """Measure each way so many times, and print the medians."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ways", nargs="+", choices=["pmix", "mpirun"], default=["pmix", "mpirun"])
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    if reason := missing():
        sys.exit(reason)
    with lab() as slurm, tempfile.TemporaryDirectory() as folder:
        for way in args.ways:
            runs = []
            for number in range(args.repeats):
                work = Path(folder) / f"{way}-{number}"
                work.mkdir()
                runs.append(served(slurm, way, work))
            work = Path(folder) / f"{way}-drain"
            work.mkdir()
            with submitted(slurm, work, *WORDS, f"model={endless_model(work)}", environ={VARIABLE: way}) as job:
                took, good = drained(slurm, job, job.served())
            for what in runs[0]:
                times = sorted(run[what] for run in runs)
                print(f"{way}: {what}: {median(times):.1f} s ({times[0]:.1f} to {times[-1]:.1f})", flush=True)
            print(
                f"{way}: drained with {STREAMS} streams: {took:.1f} s, {'as it shall' if good else 'WRONG'}", flush=True
            )


if __name__ == "__main__":
    main()
