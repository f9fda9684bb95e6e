"""A registry with one model, a store, and pulls that do not wait long."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.pulls import BIG, QUICK, SMALL, Pull, named
from support.registry import Registry, running_registry

from ollampi.api.registry.pull import pull
from ollampi.api.registry.transfer import TransferOptions
from ollampi.api.store.local import LocalStore


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    with running_registry(tmp_path / "registry") as registry:
        registry.publish("library/m:latest", BIG, SMALL)
        yield registry


@pytest.fixture
def other(tmp_path: Path) -> Iterator[Registry]:
    """A second host: a canary, or where blobs really are."""
    with running_registry(tmp_path / "other") as other:
        yield other


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path / "store")


@pytest.fixture
def options(registry: Registry) -> TransferOptions:
    return TransferOptions(registries=(registry.url,), limits=QUICK)


@pytest.fixture
def pulled(registry: Registry, store: LocalStore, options: TransferOptions) -> Pull:
    """Return a function that pulls library/m and returns the lines."""

    def do(name: str = "library/m", **more: Any) -> list[dict[str, Any]]:
        return list(pull(store, named(f"{registry.host}/{name}"), replace(options, **more)))

    return do
