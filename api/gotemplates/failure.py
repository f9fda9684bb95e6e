"""The one way in which a template of Go fails: as Ollama answers, with 500 and a text that begins with "template: "."""

from __future__ import annotations

from ollampi.api.errors import ApiError


def failure(text: str) -> ApiError:
    """Return the error that says what is wrong with a template."""
    return ApiError(500, f"template: {text}")
