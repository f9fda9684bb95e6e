"""Say what one rank holds of a model."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class LoadReport:
    """What one rank holds after loading: query and KV heads as [first, last), sizes, and what it read from disk.

    formats: what its matrices are kept in, as kernels.choice names formats, what takes most first; note: what an
    operator should know of the file that its weights are kept in; step_bytes: what it reads from that in every step;
    device: where it computes, as torch calls it; halves: whether steps may be computed in halves.
    """

    rank: int
    heads: tuple[int, int]
    kv_heads: tuple[int, int]
    weight_bytes: int
    cache_bytes: int
    read_bytes: int
    unread: list[str]
    seconds: float
    formats: list[str] = field(default_factory=list)
    note: str = ""
    step_bytes: int = 0
    device: str = "cpu"
    halves: bool = False

    @property
    def held_bytes(self) -> int:
        """Return the bytes of weights and cache."""
        return self.weight_bytes + self.cache_bytes

    @property
    def gpu_bytes(self) -> int:
        """Return those that are in the memory of a GPU."""
        return 0 if self.device == "cpu" else self.held_bytes
