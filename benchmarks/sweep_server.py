"""Start the server of a sweep's points, and read what it tells of itself: placement, memory, counters."""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families
from support.netlab import Lab
from support.servers import Server as Job
from support.servers import mpirun, server
from sweep_points import Point, Server, level_settings

from ollampi.api.model import Model, read_model
from ollampi.launcher.model_path import served_name
from ollampi.launcher.plan import find
from ollampi.mpiruntime.model_config import read_config

HOSTS = "OLLAMPI_SWEEP_HOSTS"  # a laboratory of hosts: JSON with pids and agent of support.netlab's Lab
_STOPS = "eos_token_id"
_WITH_STOPS = ("config.json", "generation_config.json")
_SAMPLE = "import os\nclass Value:\n    def name(self, other): return [1, 2.5, 'text', other] + {x: y}  # The quick fox"
_TIED = """
import os, sys
from ollampi.mpiruntime.lifetime import die_with
die_with(int(sys.argv[1]))
os.execvp(sys.argv[2], sys.argv[2:])
"""
_OTHER = ("plan", "draft", "send", "sample", "deliver")  # phases of rank 0 besides the forward pass
_OLD_S = 0.15  # what ranks have counted may be a tenth of a second old in an answer of /metrics
_SETTLED_S = 10.0  # how long the counters of a finished answer may take to show it


class SweepError(Exception):
    """What made a point fail, in one line."""


@dataclass(frozen=True)
class Subject:
    """The model of a sweep: path is what servers load, from which stop tokens are gone; stops: those left to a bias."""

    model: Model
    path: Path
    stops: list[int] = field(default_factory=list)

    @cached_property
    def token_ids(self) -> list[int]:
        """Return ids of ordinary tokens, of which prompts are made; raise ModelError."""
        encoded = self.model.texts.tokenizer().encode(_SAMPLE, add_special_tokens=False)
        return sorted(set(encoded.ids))

    def refuses(self, point: Point) -> str:
        """Return why the model cannot do what a point asks for, "" where it can; nothing need be started to see it."""
        config, longest = read_config(self.path), point.load.prompt + point.load.output
        if point.server.shards > config.num_heads:
            return f"cannot cut {config.num_heads} attention heads into {point.server.shards} shards; use fewer"
        if longest > config.max_context:
            return (
                f"prompt and answer have {longest} tokens, and the model takes {config.max_context}; use shorter ones"
            )
        return ""


def model_of(name: str) -> Model:
    """Return the model of a name or path; raise ModelError."""
    path = find(name)
    return read_model(served_name(path), path)


def subject(name: str, folder: Path) -> Subject:
    """Return the model of a name or path; its copy without stop tokens, links to its files, is made below `folder`.

    A GGUF file is taken as it is. Raise ModelError.
    """
    model = model_of(name)
    path = model.path
    if not path.is_dir():
        return Subject(model, path, model.texts.eos_token_ids)
    return Subject(model, _endless(path, folder / "models" / model.digest[:12] / path.name))


def _endless(path: Path, copy: Path) -> Path:
    """Return the copy of a folder that knows no token to stop at; it is made unless it is there."""
    if copy.is_dir():
        return copy
    copy.parent.mkdir(parents=True, exist_ok=True)
    making = Path(tempfile.mkdtemp(dir=copy.parent))
    for file in path.resolve().iterdir():
        if file.name in _WITH_STOPS:
            values = json.loads(file.read_text())
            (making / file.name).write_text(json.dumps(_without(values)))
        else:
            (making / file.name).symlink_to(file)
    try:
        return making.rename(copy)
    except OSError:  # another job was first
        shutil.rmtree(making)
        return copy


def _without(values: Any) -> Any:
    """Return settings without stop tokens, also those of the part about text."""
    if not isinstance(values, dict):
        return values
    return {name: _without(value) for name, value in values.items() if name != _STOPS}


@dataclass(frozen=True)
class Counters:
    """What the server has counted so far; by rank where it says so."""

    generated: float
    prompted: float
    reused: float
    compute_s: list[float]
    exchange_s: list[float]
    other_s: float


@dataclass
class Running:
    """A server that holds the model as a point wants it; groups: the ranks of its replicas.

    beside: tokens of a prompt that are no ids of the request's own; stuck: whether a request was not answered.
    """

    job: Job
    subject: Subject
    name: str
    request_s: float
    groups: list[list[int]] = field(default_factory=list)
    shard_bytes: list[int] = field(default_factory=list)
    start_s: float = 0.0
    beside: int = 1
    stuck: bool = False

    @property
    def usable(self) -> bool:
        """Return whether the job still runs, and no request that was given up keeps it busy."""
        return self.job.process.poll() is None and not self.stuck

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        """Return the answer; raise SweepError."""
        try:
            status, answer = self.job.request(method, path, body, timeout_s=self.request_s)
        except OSError as e:
            self.stuck = True
            raise SweepError(f"{path} was not answered: {e or type(e).__name__}") from e
        if status != 200:
            raise SweepError(f"{path} was answered with status {status}: {error_text(answer)}")
        return answer

    def samples(self) -> dict[tuple[str, str, str], float]:
        """Return the samples of /metrics by name, rank and phase, those of the model and of the ranks."""
        found: dict[tuple[str, str, str], float] = {}
        for family in text_string_to_metric_families(self.ask("GET", "/metrics")):
            for name, labels, value, *_ in family.samples:
                if labels.get("model", self.name) == self.name:
                    found[name, labels.get("rank", ""), labels.get("phase", "")] = value
        return found

    def counters(self) -> Counters:
        """Return what is counted now."""
        found = self.samples()

        def of_ranks(phase: str) -> list[float]:
            ranks = range(sum(map(len, self.groups)))
            return [found.get(("ollampi_step_phase_seconds_total", str(rank), phase), 0.0) for rank in ranks]

        return Counters(
            found.get(("ollampi_generated_tokens_total", "", ""), 0.0),
            found.get(("ollampi_prompt_tokens_total", "", ""), 0.0),
            found.get(("ollampi_prefix_cache_tokens_total", "", ""), 0.0),
            of_ranks("compute"),
            of_ranks("exchange"),
            sum(found.get(("ollampi_step_phase_seconds_total", "0", phase), 0.0) for phase in _OTHER),
        )

    def counters_after(self, generated: float) -> Counters:
        """Return what is counted once so many tokens are; a scrape may be a tenth of a second old. Raise SweepError."""
        end = time.monotonic() + _SETTLED_S
        while (found := self.counters()).generated < generated:
            if time.monotonic() > end:
                raise SweepError(f"/metrics counts {found.generated:.0f} tokens, and there were {generated:.0f}")
            time.sleep(0.05)
        time.sleep(_OLD_S)
        return self.counters()

    def process_bytes(self) -> list[int]:
        """Return the memory of each rank's process, as of its latest heartbeat."""
        found = self.samples()
        ranks = range(sum(map(len, self.groups)))
        return [int(found.get(("ollampi_node_process_bytes", str(rank), ""), 0)) for rank in ranks]

    def place(self, wanted: Server) -> None:
        """Have the model held as wanted, and note how it is held; raise SweepError where that cannot be had."""
        if wanted.replicas > 1:
            body = {"model": self.name, "shards": wanted.shards, "replicas": wanted.replicas}
            self.ask("POST", "/api/cluster/model/load", body)
        ranks = {node["id"]: node["rank"] for node in self.ask("GET", "/api/cluster/nodes")["nodes"]}
        replicas = self.ask("GET", f"/api/cluster/model/info?model={self.name}")["replicas"]
        self.groups = [[ranks[node] for node in replica["nodes"]] for replica in replicas]
        if [len(group) for group in self.groups] != [wanted.shards] * wanted.replicas:
            held = ", ".join(str(len(group)) for group in self.groups)
            raise SweepError(f"the model is held in replicas of {held} shards, not as asked for: it has too few heads")
        sizes = {ranks[shard["node"]]: shard["bytes"] for replica in replicas for shard in replica["shards"]}
        self.shard_bytes = [sizes[rank] for rank in sorted(sizes)]


def error_text(answer: Any) -> str:
    """Return what is wrong, in one line, from an answer that is an error."""
    text = answer.get("error", answer) if isinstance(answer, dict) else answer
    return " ".join(str(text).split())[:400]


def start_line(ranks: int, program: list[str]) -> tuple[list[str], dict[str, str]]:
    """Return the line and the environment that run a program on so many ranks, over the hosts that HOSTS names.

    They are killed with this process, so that a sweep that is killed leaves no server behind.
    """
    if HOSTS not in os.environ:
        line, environ = mpirun(ranks, program)
    else:
        told = json.loads(os.environ[HOSTS])
        net = Lab(told["pids"], Path(told["agent"]))
        count = len(net.pids)
        line, environ = net.mpirun([(ranks + count - 1 - host) // count for host in range(count)], program)
    return [sys.executable, "-c", _TIED, str(os.getpid()), *line], environ


@contextmanager
def running(
    wanted: Server, subject: Subject, settings: Sequence[str], ready_s: float, request_s: float
) -> Iterator[Running]:
    """Run a server until the block ends; raise SweepError where it does not start."""
    threads = "null" if wanted.threads is None else str(wanted.threads)
    own = [f"model={subject.path}", f"threads={threads}", f"quantize={wanted.quantize}", *level_settings(wanted.level)]
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        hold = server(wanted.ranks, Path(folder), *own, *settings, start=start_line, ready_s=ready_s)
        try:
            job = hold.__enter__()
        except AssertionError as e:
            log = Path(folder, f"serve-{wanted.ranks}.log")
            raise SweepError(f"the server did not start: {_reason(log.read_text() if log.exists() else str(e))}") from e
        try:
            found = Running(job, subject, f"{served_name(subject.path).short}", request_s)
            found.name = found.ask("GET", "/api/ps")["models"][0]["name"]
            found.place(wanted)
            found.start_s = time.monotonic() - began
            yield found
        finally:
            hold.__exit__(None, None, None)


def _reason(log: str) -> str:
    """Return the line of a log that says most likely why a start failed."""
    lines = [line.strip() for line in log.splitlines() if line.strip()] or ["its log is empty"]
    told = [line for line in lines if line.startswith(("ollampi", "Error", "error"))] or lines[-1:]
    return told[0][:400]
