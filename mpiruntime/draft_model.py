"""Hold what rank 0 knows of a model that drafts for another one."""

from __future__ import annotations

from dataclasses import dataclass, field

from ollampi.mpiruntime.load_report import LoadReport
from ollampi.mpiruntime.pace import Pace


@dataclass(frozen=True)
class DraftModel:
    """A smaller model on all ranks that drafts for another one; context bounds its positions."""

    number: int
    context: int
    max_step_tokens: int
    name: str
    reports: list[LoadReport]
    pace: Pace = field(default_factory=Pace)
