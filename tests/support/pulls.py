"""Pulls that do not wait long, of a model that has several pieces."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ollampi.api.names import Name, parse_name
from ollampi.api.registry.transfer import Limits
from ollampi.api.store.local import LocalStore

MIB = 1 << 20
QUICK = Limits(stall_s=0.5, connect_s=2.0, first_delay_s=0.001, max_delay_s=0.01)
BIG = random.Random(1).randbytes(21 * MIB + 12345)  # six pieces, the last one short
SMALL = b'{"stop":["x"]}'

Pull = Callable[..., list[dict[str, Any]]]


def named(text: str) -> Name:
    name = parse_name(text)
    assert name is not None
    return name


def bytes_of(store: LocalStore, name: str) -> list[bytes]:
    """Return the bytes of a model's layers."""
    manifest = store.read(named(name))
    assert manifest is not None
    return [store.blobs.path(layer.digest).read_bytes() for layer in manifest.layers]


def partials(store: LocalStore) -> list[Path]:
    return sorted(store.blobs.root.glob("*.partial"))
