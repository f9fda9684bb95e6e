"""Say how a rank is, and what changed."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

Status = Literal["online", "suspect", "offline", "left"]


@dataclass(frozen=True)
class NodeHealth:
    """How one rank is.

    status: online, suspect, offline, or left where it is online and was taken out of all groups; since: unix seconds of
    its last change; seen_s: the age of its last beat, None where it never sent one. The values of that beat, None or []
    before the first: cpu_percent of one core by the rank's process, bytes of memory of its host and of the process,
    gpus with name, memory_total and memory_available, step_ms the mean of the latest steps; last_token_s: the age of
    its last step, None for none yet. faults: what tests found.
    """

    rank: int
    status: Status
    since: float
    seen_s: float | None
    cpu_percent: float | None = None
    memory_total: int | None = None
    memory_available: int | None = None
    process_bytes: int | None = None
    gpus: list[dict[str, Any]] = field(default_factory=list)
    step_ms: float | None = None
    last_token_s: float | None = None
    faults: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Change:
    """A change of a rank's status, or of its faults, at a time in unix seconds; why: in words."""

    at: float
    rank: int
    status: Status
    why: str
