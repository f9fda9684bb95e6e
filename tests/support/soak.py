"""Send a server random requests from many clients, and tell how each of them ended."""

from __future__ import annotations

import http.client
import json
import os
import random
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from support.servers import Server

HOSTILE: list[Any] = [-1, -(2**31), 2**31, 2**63, 1.5, float("nan"), float("inf"), 1e308, "1", True, [], {}]
OPTIONS = ["num_ctx", "num_keep", "seed", "num_predict", "top_k", "repeat_last_n", "top_p", "min_p", "typical_p"]
OPTIONS += ["temperature", "repeat_penalty", "presence_penalty", "frequency_penalty", "timeout", "logit_bias", "stop"]
WORDS = [
    "import",
    "class",
    "return",
    "self",
    "None",
    "raise",
    "value",
    "def",
    "for",
    "if",
    "a",
    "b",
    "(",
    ")",
    ":",
    "=",
]
WORDS += ["\n", "1", "\u00e9", "\u4f60", "<0x00>"]
CONTEXT = 256
BEGINNINGS = [" ".join(random.Random(n).choices(WORDS, k=60)) for n in range(4)]


@dataclass(frozen=True)
class Resources:
    """What the processes of a job hold: descriptors, threads, bytes of memory."""

    descriptors: int
    threads: int
    memory_bytes: int


@dataclass(frozen=True)
class Ask:
    """A request, and after how many lines of the answer its client leaves (None: it reads all)."""

    kind: str
    path: str
    body: str
    lines: int | None = None


def resources(job: Server) -> Resources:
    """Return what all processes of a job hold together."""
    descriptors = threads = memory = 0
    for pid in job.processes():
        descriptors += len(os.listdir(f"/proc/{pid}/fd"))
        threads += len(os.listdir(f"/proc/{pid}/task"))
        with open(f"/proc/{pid}/statm") as statm:
            memory += int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return Resources(descriptors, threads, memory)


def soak(job: Server, count: int, clients: int, seed: int) -> Counter[str]:
    """Return how `count` random requests ended; raise AssertionError for one that ended as it may not."""
    asks = [_ask(random.Random(f"{seed}-{n}")) for n in range(count)]
    with ThreadPoolExecutor(clients) as pool:
        return Counter(pool.map(lambda ask: _send(job.port, ask), asks))


def _ask(rng: random.Random) -> Ask:
    """Return a random request."""
    kinds: list[tuple[int, Callable[[random.Random], Ask]]] = [
        (50, _text),
        (10, _leaving),
        (8, _hostile),
        (4, _too_long),
        (4, _late),
        (4, _broken),
        (8, _embedding),
        (4, _other),
    ]
    return rng.choices([make for _, make in kinds], [weight for weight, _ in kinds])[0](rng)


def _prompt(rng: random.Random, longest: int = 150) -> str:
    begin = rng.choice(["", "", *BEGINNINGS])
    return begin + " ".join(rng.choices(WORDS, k=rng.randint(1, longest)))


def _body(rng: random.Random, prompt: str, options: dict[str, Any], **fields: Any) -> tuple[str, str]:
    """Return the path and the body of a request for text."""
    common = {"model": "demo", "options": options, "stream": rng.random() < 0.7, **fields}
    if rng.random() < 0.3:
        turns = [{"role": "system", "content": rng.choice(BEGINNINGS)}, {"role": "user", "content": prompt}]
        return "/api/chat", json.dumps({"messages": turns, **common})
    return "/api/generate", json.dumps({"prompt": prompt, "raw": rng.random() < 0.5, **common})


def _options(rng: random.Random) -> dict[str, Any]:
    """Return sound options."""
    choices: dict[str, list[Any]] = {
        "temperature": [0, 0.8, 1.5],
        "top_k": [0, 1, 40, 1000],
        "top_p": [0.0, 0.5, 0.9, 1.0],
        "min_p": [0, 0.1],
        "typical_p": [0.5, 1.0],
        "repeat_penalty": [1.0, 1.2],
        "repeat_last_n": [-1, 0, 64],
        "frequency_penalty": [0, 0.5],
        "seed": [-1, 1, 2**62],
        "num_keep": [-1, 0, 4, 300],
        "num_ctx": [16, 64, CONTEXT],
        "draft_num_predict": [-1, 0, 3],
        "stop": [[], ["\n"], ["e", "import", "\u00e9"]],
        "logit_bias": [{}, {"5": 2.5, "7": -100}],
    }
    some = rng.sample(sorted(choices), rng.randint(0, 6))
    return {name: rng.choice(choices[name]) for name in some} | {"num_predict": rng.choice([1, 5, 20, 40])}


def _text(rng: random.Random) -> Ask:
    fields = {"logprobs": True, "top_logprobs": 3} if rng.random() < 0.2 else {}
    return Ask("text", *_body(rng, _prompt(rng), _options(rng), **fields))


def _leaving(rng: random.Random) -> Ask:
    path, body = _body(rng, _prompt(rng, 600), _options(rng) | {"num_predict": 400})
    return Ask("leaving", path, body, lines=rng.randint(0, 5))


def _hostile(rng: random.Random) -> Ask:
    options = {name: rng.choice(HOSTILE) for name in rng.sample(OPTIONS, rng.randint(1, 3))}
    return Ask("hostile", *_body(rng, _prompt(rng, 10), {"num_predict": 5} | options))


def _too_long(rng: random.Random) -> Ask:
    prompt = _prompt(rng) * 20
    return Ask("too long", *_body(rng, prompt, {"num_predict": 5}, truncate=False, shift=False))


def _late(rng: random.Random) -> Ask:
    return Ask(
        "late", *_body(rng, _prompt(rng), _options(rng) | {"num_predict": 400, "timeout": rng.choice([0.001, 0.2])})
    )


def _broken(rng: random.Random) -> Ask:
    path, body = _body(rng, _prompt(rng, 10), {})
    return Ask("broken", path, rng.choice([body[: rng.randrange(len(body))], "", "[]", "null", '{"model": 5}', "\x00"]))


def _embedding(rng: random.Random) -> Ask:
    return Ask(
        "embedding",
        "/api/embed",
        json.dumps({"model": "demo", "input": [_prompt(rng) for _ in range(rng.randint(0, 4))]}),
    )


def _other(rng: random.Random) -> Ask:
    return Ask("other", rng.choice(["/api/tags", "/api/ps", "/api/version", "/", "/nothing"]), "")


def _send(port: int, ask: Ask) -> str:
    """Return how a request ended; raise AssertionError where it may not end like that."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    try:
        connection.request("GET" if ask.kind == "other" else "POST", ask.path, ask.body.encode("utf-8", "replace"))
        if ask.lines is not None:
            return _leave(connection, ask.lines)
        response = connection.getresponse()
        text = response.read().decode()
        return _judge(ask, response.status, text)
    finally:
        connection.close()


def _leave(connection: http.client.HTTPConnection, lines: int) -> str:
    """Hang up before or while the answer comes."""
    if lines:
        response = connection.getresponse()
        for _ in range(lines):
            response.readline()
    return "left"


def _judge(ask: Ask, status: int, text: str) -> str:
    """Return the outcome of an answer that was read to its end."""
    allowed = {
        "text": {200, 503},
        "hostile": {200, 400, 500, 503, 504},
        "too long": {400, 503},
        "late": {200, 503, 504},
        "broken": {400, 404},
        "embedding": {200, 503},
        "other": {200, 404},
    }
    assert status in allowed[ask.kind], (ask, status, text)
    if status != 200:
        assert ask.kind == "other" or json.loads(text)["error"], (ask, text)
        assert status != 500 or json.loads(text)["error"].startswith("option "), (ask, text)
        return f"{ask.kind}: {status}"
    if ask.path in ("/api/generate", "/api/chat"):
        last = json.loads(text.strip().rpartition("\n")[2])
        late = ask.kind in ("late", "hostile") and "not complete in its time" in last.get("error", "")
        assert late or last["done"], (ask, text)
        return f"{ask.kind}: {'late' if late else last['done_reason']}"
    return f"{ask.kind}: 200"
