"""Be many clients of an engine at a time, and one who changes where the models lie; compare every answer."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ollampi.mpiruntime.inbox import Event, Local
from ollampi.mpiruntime.request import GenerateRequest, ModelRef, Sampling

LENGTHS, ANSWER = (3, 20, 40), 24
CHANGE_S = 0.5  # between the end of one change and the next
_LATE_S = 0.05
_STRANGE_RANK = 1000
Key = tuple[str, int]


@dataclass
class Asked:
    """Something that was asked of the engine, and what came so far.

    allowed: the codes of the errors that it may end with; key: of the answer that is expected; leaves: after how many
    tokens it is cancelled.
    """

    what: str
    allowed: frozenset[str] = frozenset()
    key: Key | None = None
    leaves: int | None = None
    tokens: list[int] = field(default_factory=list)


class Crowd(Local):
    """Clients that ask one thing after another, while a placement changes now and then.

    The first answers are those of lone models, on the first of the usable ranks. Some clients leave, some are in a
    hurry, and some changes cannot be. folders: of the models by name; broken: of one that cannot be loaded; usable: the
    ranks that hold weights; seconds: for which they ask.
    """

    def __init__(
        self, folders: dict[str, Path], broken: Path, usable: list[int], clients: int, seconds: float, seed: int
    ) -> None:
        super().__init__()
        self.folders, self.broken, self.usable, self.seconds = folders, broken, usable, seconds
        self.draw = random.Random(seed)
        self.clients = clients
        self.expected: dict[Key, list[int]] = {}
        self.open: dict[int, Asked] = {}
        self.outcomes: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.number = 0
        self.began: float | None = None
        self.changing = 0
        self.next_change = 0.0
        for name in folders:
            self.place(name, [usable[:1]], "first place")
        for name in folders:
            for length in LENGTHS:
                self.ask((name, length))

    def ask(self, key: Key, leaves: int | None = None, timeout_s: float | None = None) -> None:
        """Ask for the answer to one of the prompts."""
        name, length = key
        prompt = [(7 * n + length) % 200 + 1 for n in range(length)]
        ref = ModelRef(name, str(self.folders[name]))
        request = GenerateRequest(ref, prompt, Sampling(temperature=0), max_tokens=ANSWER, timeout_s=timeout_s)
        what = "answer" if leaves is None and timeout_s is None else "left" if timeout_s is None else "in a hurry"
        allowed = frozenset(["timeout"] if timeout_s else [])
        self._send(Asked(what, allowed, key, leaves), {"op": "generate", "request": request.to_wire()})

    def place(self, name: str, ranks: list[list[int]], what: str = "place", *allowed: str) -> None:
        """Have a model placed."""
        model = {"name": name, "path": str(self.folders.get(name, self.broken))}
        wish = {"keep_alive_s": None, "context": None, "ranks": ranks}
        self._send(Asked(what, frozenset(allowed)), {"op": "place", "model": model, **wish})

    def _send(self, asked: Asked, message: dict[str, Any]) -> None:
        self.number += 1
        self.open[self.number] = asked
        self.changing += asked.key is None
        self.messages.put({"id": self.number, **message})

    def post(self, event: Event) -> None:
        """Take an answer; ask the next thing behind the last of its events."""
        kind, number = event["kind"], event["id"]
        asked = self.open.get(number)
        if asked is None or kind == "progress":
            return
        if kind == "tokens":
            before = len(asked.tokens)
            asked.tokens += event["tokens"]
            if asked.leaves is not None and before < asked.leaves <= len(asked.tokens):
                self.messages.put({"op": "cancel", "id": number})
            return
        del self.open[number]
        self._judge(asked, event)
        if asked.key is None:
            self.changing -= 1
            self.next_change = time.monotonic() + CHANGE_S
        elif self.began is not None and not self.over:
            self._ask_anything()
        if self.began is None and not self.open:
            self.began = time.monotonic()
            for _ in range(self.clients):
                self._ask_anything()

    def _judge(self, asked: Asked, event: Event) -> None:
        """Count how something ended, and note where it may not end like that."""
        kind, code = event["kind"], event.get("code", "")
        self.outcomes[f"{asked.what}: {code or event.get('reason', kind)}"] += 1
        if kind == "error" and code not in asked.allowed:
            self.wrong.append(f"{asked.what} ended with {code}: {event['message']}")
        if asked.key is None:
            return
        if self.began is None:
            self.expected[asked.key] = asked.tokens
        expected = self.expected[asked.key]
        whole = kind == "done" and event["reason"] != "cancel"
        if asked.tokens != (expected if whole else expected[: len(asked.tokens)]):
            self.wrong.append(f"{asked.key}: {asked.tokens} in the place of {expected}")

    def _ask_anything(self) -> None:
        """Ask for an answer at random."""
        key, chance = self.draw.choice(list(self.expected)), self.draw.random()
        if chance < 0.1:
            self.ask(key, leaves=self.draw.randint(1, ANSWER - 1))
        else:
            self.ask(key, timeout_s=_LATE_S if chance < 0.15 else None)

    @property
    def over(self) -> bool:
        """Return whether nothing more is to be asked."""
        return bool(self.wrong) or (self.began is not None and time.monotonic() - self.began > self.seconds)

    def change(self) -> None:
        """Change something, where the last change is done."""
        if self.began is None or self.over or self.changing or time.monotonic() < self.next_change:
            return
        name = self.draw.choice(list(self.folders))
        changes: list[tuple[int, Callable[[], None]]] = [
            (12, lambda: self.place(name, [group(self.draw, self.usable) for _ in range(self.draw.randint(1, 3))])),
            (3, lambda: self._unload("unload", name)),
            (2, lambda: self._unload("unload idle", name, "conflict", "absent")),
            (2, lambda: self.place("broken", [group(self.draw, self.usable)], "place what is broken", "model")),
            (1, lambda: self.place(name, [[_STRANGE_RANK]], "place on no rank", "request")),
        ]
        self.draw.choices([make for _, make in changes], [weight for weight, _ in changes])[0]()

    def _unload(self, how: str, name: str, *allowed: str) -> None:
        self._send(Asked(how, frozenset(allowed)), {"op": how, "model": {"name": name}})


def group(draw: random.Random, ranks: list[int]) -> list[int]:
    """Return some ranks at random."""
    return sorted(draw.sample(ranks, draw.randint(1, len(ranks))))
