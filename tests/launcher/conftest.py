"""What tests of the commands share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest
from support.fake_api import Become, FakeApi, serving


@pytest.fixture
def api() -> Iterator[FakeApi]:
    with serving(FakeApi()) as server:
        yield server


@pytest.fixture
def become(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    seen: list[Any] = []

    def note(*args: Any) -> None:
        seen.extend(args)
        raise Become

    monkeypatch.setattr(os, "execv", note)
    return seen
