"""Measure one load on a running server: rounds of requests with exactly so many tokens, none of them known before."""

from __future__ import annotations

import http.client
import json
import random
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from sweep_points import Load
from sweep_records import Repeat
from sweep_server import Running, SweepError, error_text

# hot enough that no answer goes in circles, which ends it
_SAMPLING = {"temperature": 2.0, "top_k": 40, "top_p": 1.0, "min_p": 0.0, "repeat_penalty": 1.0, "draft_num_predict": 0}
_NEVER = -1000.0


@dataclass(frozen=True)
class Answered:
    """How one request went; at: time.perf_counter() when its last line was there."""

    sent: float
    at: float
    prompt: int
    output: int
    decode_s: float

    @property
    def first_s(self) -> float:
        """Return the time to the first token: of all, without what the engine needed from it to the last token.

        The first token may be a part of a character, for which no line is sent, so lines do not tell.
        """
        return self.at - self.sent - self.decode_s

    @property
    def token_s(self) -> float:
        """Return the mean time between two tokens."""
        return self.decode_s / (self.output - 1)


def measure(server: Running, load: Load, warmups: int, repeats: int) -> list[Repeat]:
    """Return the rounds that count; raise SweepError where a prompt or an answer has another length, or was cached."""
    server.beside = _answer(server, [server.subject.token_ids[0]], 1, 0).prompt - 1
    if load.prompt <= server.beside:
        raise SweepError(f"prompt={load.prompt} is too short: {server.beside + 1} tokens are the fewest for this model")
    for number in range(warmups):
        _round(server, load, -1 - number)
    return [_round(server, load, number) for number in range(repeats)]


def _round(server: Running, load: Load, number: int) -> Repeat:
    """Send all requests of a round at once; return what came of them. Prompts are the same in every sweep."""
    draw = random.Random(f"{load} {number}")
    prompts = [draw.choices(server.subject.token_ids, k=load.prompt - server.beside) for _ in range(load.concurrency)]
    before = server.counters()
    with ThreadPoolExecutor(load.concurrency) as pool:
        answers = list(pool.map(lambda asked: _answer(server, asked[1], load.output, asked[0]), enumerate(prompts)))
    for answer in answers:
        if (answer.prompt, answer.output) != (load.prompt, load.output):
            got = f"{answer.prompt} tokens and an answer of {answer.output}"
            raise SweepError(f"a request had a prompt of {got}, not of {load.prompt} and {load.output}")
    tokens = sum(answer.output for answer in answers)
    after = server.counters_after(before.generated + tokens)
    if after.reused > before.reused:
        raise SweepError(f"{after.reused - before.reused:.0f} tokens of prompts came from the prefix cache")
    return Repeat(
        max(answer.at for answer in answers) - min(answer.sent for answer in answers),
        [answer.first_s for answer in answers],
        [answer.token_s for answer in answers],
        tokens,
        [b - a for a, b in zip(before.compute_s, after.compute_s, strict=True)],
        [b - a for a, b in zip(before.exchange_s, after.exchange_s, strict=True)],
        after.other_s - before.other_s,
    )


def _answer(server: Running, tokens: list[int], output: int, seed: int) -> Answered:
    """Send one request whose prompt is these tokens and `server.beside` more; raise SweepError."""
    options: dict[str, Any] = _SAMPLING | {"num_predict": output, "seed": seed}
    if server.subject.stops:
        options["logit_bias"] = {str(token): _NEVER for token in server.subject.stops}
    body = {"model": server.name, "prompt": "a", "template": "{{ .Prompt }}", "context": tokens, "options": options}
    connection = http.client.HTTPConnection("127.0.0.1", server.job.port, timeout=server.request_s)
    last: dict[str, Any] = {}
    sent = time.perf_counter()
    try:
        connection.request("POST", "/api/generate", json.dumps(body))
        response = connection.getresponse()
        for line in response:
            last = json.loads(line)
        at = time.perf_counter()
    except (OSError, ValueError, http.client.HTTPException) as e:
        server.stuck = True
        raise SweepError(f"a request was not answered: {e or type(e).__name__}") from e
    finally:
        connection.close()
    if response.status != 200 or not last.get("done"):
        raise SweepError(f"a request was answered with status {response.status}: {error_text(last)}")
    return Answered(sent, at, last["prompt_eval_count"], last["eval_count"], last.get("eval_duration", 0) / 1e9)
