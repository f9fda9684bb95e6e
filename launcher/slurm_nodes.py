"""Know the nodes of a Slurm job and its tasks on each, and ask which of them answer."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from threading import Event

from ollampi.launcher.slurm_lists import counts_in, names_in
from ollampi.mpiruntime.errors import ConfigError

# returns which paths a node lacks, None where it does not answer, or not before the event is set
Ask = Callable[[str, Event], "list[str] | None"]

_AT_A_TIME = 64  # nodes that are asked at one time
_FIRST_S, _OTHERS_S = 20.0, 4.0  # until the first answer; and then, for each further one
_LOOK_S = 0.1
_SCRIPT = 'for path; do test -e "$path" || echo "lacks $path"; done; echo answers'


@dataclass(frozen=True)
class Node:
    """A node of the allocation and how many ranks it takes."""

    name: str
    tasks: int


@dataclass(frozen=True)
class Allocation:
    """What Slurm gave this job."""

    nodes: tuple[Node, ...]
    cpus_per_task: int | None

    @property
    def ranks(self) -> int:
        """Return the number of tasks on all nodes."""
        return sum(node.tasks for node in self.nodes)


def allocation(environ: Mapping[str, str]) -> Allocation:
    """Return what the job of this process was given.

    Raise ConfigError outside a job, and where there are fewer slots than tasks.
    """
    if not environ.get("SLURM_JOB_ID") or not environ.get("SLURM_JOB_NODELIST"):
        raise ConfigError("this is no Slurm job: SLURM_JOB_ID is not set; submit it with `sbatch slurm/serve.sh`")
    names = names_in(environ, "SLURM_JOB_NODELIST")
    counts = task_counts(environ, len(names))
    nodes = tuple(Node(name, count) for name, count in zip(names, counts, strict=True) if count)
    per_task = environ.get("SLURM_CPUS_PER_TASK", "")
    return Allocation(nodes, int(per_task) if per_task.isdigit() else None)


def task_counts(environ: Mapping[str, str], num_nodes: int) -> list[int]:
    """Return how many tasks each node has: Slurm's own counts, or one on each node where nobody asked for a number."""
    text, wanted = environ.get("SLURM_TASKS_PER_NODE", ""), environ.get("SLURM_NTASKS", "")
    asked = wanted.isdigit() or environ.get("SLURM_NTASKS_PER_NODE", "").isdigit()
    counts = counts_in(environ, "SLURM_TASKS_PER_NODE") if asked else [1] * num_nodes
    total = int(wanted) if wanted.isdigit() else num_nodes
    if len(counts) != num_nodes or sum(counts) < total:
        raise ConfigError(
            f"Slurm gave {sum(counts)} slots ({text or 'none'}) on {num_nodes} nodes for {total} tasks; ask for"
            " --ntasks=N, or for --nodes=N and --ntasks-per-node=N, as many as the nodes have cores"
        )
    return counts


def asker(paths: Sequence[str], environ: Mapping[str, str]) -> Ask:
    """Return what asks a node, by a step of the job, whether it answers and has all of `paths`."""

    def ask(node: str, over: Event) -> list[str] | None:
        """Return which paths a node lacks, None where it does not answer before the event is set."""
        line = ["srun", "--overlap", "--mem=0", "--mpi=none", "--nodes=1", "--ntasks=1", f"--nodelist={node}"]
        line += ["--input=none", "--gres=none", "sh", "-c", _SCRIPT, "sh", *paths]
        out = subprocess.PIPE
        with subprocess.Popen(line, stdout=out, stderr=subprocess.DEVNULL, text=True, env=environ) as process:
            while process.poll() is None and not over.wait(_LOOK_S):
                pass
            process.kill()
            told = process.communicate()[0].splitlines()
        return [each.removeprefix("lacks ") for each in told if each != "answers"] if "answers" in told else None

    return ask


def answering(nodes: Sequence[Node], ask: Ask) -> tuple[list[Node], dict[str, list[str]]]:
    """Return the nodes that answer, and what each of these lacks, where it lacks anything, both in their order.

    Nodes are asked side by side; those that have not answered some seconds after the last that did count as gone.
    """
    pool, over = ThreadPoolExecutor(_AT_A_TIME, thread_name_prefix="node"), Event()
    asked: dict[Future[list[str] | None], Node] = {pool.submit(ask, node.name, over): node for node in nodes}
    pending, end, found = set(asked), time.monotonic() + _FIRST_S, dict[Node, list[str]]()
    while pending and (left := end - time.monotonic()) > 0:
        done, pending = wait(pending, left, FIRST_COMPLETED)
        for each in done:
            if (lacks := each.result()) is not None:
                found[asked[each]] = lacks
                end = time.monotonic() + _OTHERS_S
    over.set()
    pool.shutdown(cancel_futures=True)
    answer = [node for node in nodes if node in found]
    return answer, {node.name: found[node] for node in answer if found[node]}
