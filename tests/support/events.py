"""Read server-sent events as their clients do."""

from __future__ import annotations

import json
from typing import Any


def events(response: Any) -> list[tuple[str, Any]]:
    """Return the names and the values of all events of an answer, checking their framing."""
    assert response.status_code == 200, response.text
    assert response.headers["Content-Type"] == "text/event-stream"
    assert response.text.endswith("\n\n")
    found = []
    for block in response.text[:-2].split("\n\n"):
        *name, data = block.split("\n")
        assert len(name) <= 1
        assert all(line.startswith("event: ") for line in name)
        assert data.startswith("data: ")
        value = data.removeprefix("data: ")
        found.append(
            (name[0].removeprefix("event: ") if name else "", value if value == "[DONE]" else json.loads(value))
        )
    return found
