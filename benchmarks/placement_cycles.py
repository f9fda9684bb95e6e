"""Have models loaded on groups of ranks and unloaded again, and see whether what the ranks hold grows."""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from placement_crowd import group

from ollampi.mpiruntime.inbox import Event, Local

WEIGHTS = "model.safetensors"
LOOKS = 100  # in all cycles
TOLD = 10  # of them are printed


@dataclass(frozen=True, slots=True)
class Held:
    """What a process holds: descriptors, threads, segments of shared memory, and KiB of memory of its own."""

    descriptors: int
    threads: int
    segments: int
    memory_kib: int

    def __str__(self) -> str:
        """Return it in words."""
        counts = f"{self.descriptors} descriptors, {self.threads} threads, {self.segments} segments"
        return f"{counts}, {self.memory_kib / 1024:.1f} MiB"


def held(pid: int) -> Held:
    """Return what a process of this host holds."""
    status = Path(f"/proc/{pid}/status").read_text()
    fields = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
    segments = Path(f"/proc/{pid}/maps").read_text().count("/dev/shm/ollampi")
    memory_kib = int(fields["RssAnon"].split()[0])
    return Held(len(os.listdir(f"/proc/{pid}/fd")), int(fields["Threads"]), segments, memory_kib)


def slope(points: list[tuple[int, float]]) -> float:
    """Return by how much y grows with x, over (x, y): the median between all pairs, which single peaks do not move."""
    steps = [(y - y0) / (x - x0) for i, (x0, y0) in enumerate(points) for x, y in points[i + 1 :]]
    return median(steps) if steps else 0.0


class Growth:
    """What some processes held after some cycles."""

    def __init__(self, pids: list[int]) -> None:
        self.pids = pids
        self.looks: list[tuple[int, list[Held]]] = []

    def look(self, cycle: int) -> str:
        """Note what all hold now; return it in words."""
        self.looks.append((cycle, [held(pid) for pid in self.pids]))
        return "; ".join(str(each) for each in self.looks[-1][1])

    def told(self, names: list[str]) -> list[str]:
        """Return in words by how much each process grew over the last half of the cycles."""
        half = self.looks[len(self.looks) // 2 :]
        lines = []
        for place, name in enumerate(names):
            kib = slope([(cycle, each[place].memory_kib) for cycle, each in half])
            first, last = half[0][1][place], half[-1][1][place]
            counts = f"descriptors {last.descriptors - first.descriptors:+d}, threads {last.threads - first.threads:+d}"
            grown = f"{last.memory_kib - first.memory_kib:+d} KiB from cycle {half[0][0]} to {half[-1][0]}"
            lines.append(f"{name}: memory {kib:+.2f} KiB per cycle, {grown}; {counts}")
        return lines


class Broken:
    """Models that cannot be loaded, in a folder: one is torn, one is cut and one goes while it is read, one is huge."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._sound = (folder / "huge" / WEIGHTS).read_bytes()

    def wish(self, number: int) -> tuple[Path, int | None]:
        """Return the folder of the model whose turn it is, as it is before a load, and the context to ask for."""
        name = ("torn", "cut", "vanishing", "huge")[number % 4]
        if name in ("cut", "vanishing"):
            (self._folder / name / WEIGHTS).write_bytes(self._sound)
        return self._folder / name, 1 << 35 if name == "huge" else None


class Cycles(Local):
    """One client that has a model placed on a group and unloads it, again and again.

    broken: models that are placed before, which must fail; settle: waits until all ranks have done what they were
    told, so that what they hold can be compared.
    """

    def __init__(self, model: Path, broken: Broken | None, growth: Growth, cycles: int, seed: int) -> None:
        super().__init__()
        self.model, self.broken, self.growth, self.cycles = model, broken, growth, cycles
        self.draw = random.Random(seed)
        self.settle: Callable[[], object] = lambda: None
        self.done = self.groups = 0
        self.refused: Counter[str] = Counter()
        self.spoilt = ""
        self.failed = ""
        self.next()

    def place(self, number: int, name: str, folder: Path, context: int | None = None) -> None:
        """Ask for a placement."""
        ranks = group(self.draw, list(range(len(self.growth.pids))))
        self.groups += 1 < len(ranks) < len(self.growth.pids)
        model = {"name": name, "path": str(folder)}
        wish = {"keep_alive_s": None, "context": context, "ranks": [ranks]}
        self.messages.put({"op": "place", "id": number, "model": model, **wish})

    def next(self) -> None:
        """Begin a cycle: with a load that fails, or one that does not."""
        if self.broken is not None:
            folder, context = self.broken.wish(self.done)
            self.spoilt = folder.name
            self.place(0, "broken", folder, context)
        else:
            self.place(1, "m", self.model)

    def post(self, event: Event) -> None:
        """Go on to the next."""
        kind, number = event["kind"], event["id"]
        if number == 0 and kind == "error" and event["code"] in ("model", "memory"):
            self.refused[self.spoilt] += 1
            self.place(1, "m", self.model)
        elif kind == "error" or (number == 0 and kind == "placed"):
            self.failed = event.get("message", "a broken model was loaded")
        elif kind == "placed":
            self.messages.put({"op": "unload", "id": 2, "model": {"name": "m"}})
        elif kind == "done":
            self._count()
            if not self.over:
                self.next()

    def _count(self) -> None:
        """Note that a cycle is done."""
        self.done += 1
        every = max(1, self.cycles // LOOKS)
        if self.done % every == 0:
            self.settle()
            words = self.growth.look(self.done)
            if self.done % (every * max(1, LOOKS // TOLD)) == 0:
                print(f"{self.done} cycles: {words}", flush=True)

    @property
    def over(self) -> bool:
        """Return whether all cycles are done, or one failed."""
        return bool(self.failed) or self.done >= self.cycles
