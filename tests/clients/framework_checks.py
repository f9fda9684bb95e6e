"""The checks of python_frameworks.py, and what the server itself answers."""

from __future__ import annotations

import json
import sys
import urllib.request
from collections.abc import Callable
from typing import Any

URL = sys.argv[1].rstrip("/") if len(sys.argv) > 1 else "http://127.0.0.1:11434"
QUESTION = "Write the function close. Close the file."
SHORT, LONG = 24, 300
CHECKS: list[tuple[str, str, Callable[[], None]]] = []


def check(package: str, what: str) -> Callable[[Callable[[], None]], Callable[[], None]]:
    """Return what adds a function to the checks."""

    def add(function: Callable[[], None]) -> Callable[[], None]:
        CHECKS.append((package, what, function))
        return function

    return add


def call(path: str, body: dict[str, Any]) -> dict[str, Any]:
    """Return the JSON answer of the server itself."""
    with urllib.request.urlopen(f"{URL}{path}", json.dumps(body).encode(), timeout=120) as answer:
        return json.load(answer)


def expected(count: int = SHORT) -> str:
    """Return what Ollama's route answers to the question, greedily."""
    messages = [{"role": "user", "content": QUESTION}]
    options = {"temperature": 0, "num_predict": count}
    return call("/api/chat", {"model": "demo", "messages": messages, "stream": False, "options": options})["message"][
        "content"
    ]


def same(found: object, wanted: object) -> None:
    if found != wanted:
        raise AssertionError(f"{found!r} is not {wanted!r}")


def not_found(ask: Callable[[], object]) -> None:
    """Raise AssertionError where a question is no error that says so."""
    try:
        ask()
    except Exception as e:
        if "not found" not in str(e):
            raise
    else:
        raise AssertionError("there was none")
