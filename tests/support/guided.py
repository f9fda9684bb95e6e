"""Ask for answers under grammars, of a small random model on any world."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

from ollampi.mpiruntime.engine_settings import EngineSettings
from ollampi.mpiruntime.inbox import Event
from ollampi.mpiruntime.request import Grammar, Sampling
from ollampi.mpiruntime.thread_world import run_threads
from support.checkpoints import PROMPT
from support.grammars import END, byte_tokenizer
from support.servers import descendants
from support.worlds import Recorder, generate, run_engine

SETTINGS = EngineSettings(cache_tokens=2048, block_size=4, max_step_tokens=64)
GREEDY, DRAWN = Sampling(temperature=0.0), Sampling(temperature=1.0, top_k=0, top_p=1.0, seed=7)
SCHEMAS: list[dict[str, Any]] = [
    {"type": "boolean"},
    {"enum": ["red", 7, None, "gr\u00fcn"]},
    {"type": "string", "maxLength": 5},
    {"type": "array", "items": {"type": "integer", "minimum": -3, "maximum": 12}, "minItems": 1, "maxItems": 2},
    {
        "type": "object",
        "properties": {
            "a": {"type": "integer", "minimum": 0, "maximum": 255},
            "b": {"anyOf": [{"type": "null"}, {"type": "string", "maxLength": 3}]},
            "c": {"type": "array", "items": {"enum": ["x", "y"]}, "maxItems": 2},
        },
        "required": ["b", "a"],
        "additionalProperties": False,
        "x-guidance": {"whitespace_pattern": " "},
    },
]
REGEXES = [r"[a-f]{4}-\d{2,3}", r"(yes|no|may ?be)!?", r"[0-9A-Za-z]{1,3}@[a-z]{2}\.(com|org)", "é{2}[^a-z]x"]


def ask(number: int, folder: Path, grammar: Grammar | None, sampling: Sampling = DRAWN, **fields: Any) -> Any:
    """Return the message that asks for an answer under a grammar."""
    defaults = {"stop_tokens": [END], "max_tokens": 150, "context": 256}
    return generate(number, folder, PROMPT, grammar=grammar, sampling=sampling, **(defaults | fields))


def answers(
    size: int, messages: list[dict[str, Any]], client: Recorder | None = None, settings: EngineSettings = SETTINGS
) -> Recorder:
    """Return what a world of so many ranks answers."""
    recorder = run_threads(size, lambda c: run_engine(c, messages, settings, client))[0]
    assert recorder is not None
    return recorder


def text(recorder: Recorder, number: int) -> str:
    """Return the text of an answer that has ended well."""
    assert recorder.last(number)["kind"] == "done", recorder.last(number)
    return str(byte_tokenizer().decode(recorder.tokens(number), skip_special_tokens=False))


class Killer(Recorder):
    """Kills the grammar process at every tenth token of request 1, `times` times; waits for its end where asked to."""

    def __init__(self, messages: list[dict[str, Any]], times: int, waits: bool = False) -> None:
        super().__init__(messages)
        self.times = times
        self.due = 10
        self.waits = waits

    def post(self, event: Event) -> None:
        """Keep the event; kill where it is time."""
        super().post(event)
        if event["kind"] == "tokens" and event["id"] == 1 and len(self.tokens(1)) >= self.due and self.times:
            self.times -= 1
            self.due += 10
            for pid in descendants(os.getpid()):
                if b"grammar_worker" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    os.kill(pid, signal.SIGKILL)
                    while self.waits and Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
                        time.sleep(0.001)
