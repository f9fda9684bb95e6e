"""Say which part of a dimension a rank owns; nobody else divides by the world size."""

from __future__ import annotations

from dataclasses import dataclass

from ollampi.mpiruntime.errors import WorldError


@dataclass(frozen=True)
class Shard:
    """The place of one tensor-parallel rank among `size`; the same `size` on every rank."""

    rank: int
    size: int

    def of(self, count: int, unit: int = 1) -> range:
        """Return this rank's contiguous part of range(count); parts differ by at most one unit and tile the whole.

        Where `unit` does not divide `count`, or there are fewer units than ranks, single elements are dealt out.
        """
        if count % unit or count // unit < self.size:
            unit = 1
        units = count // unit
        first, last = units * self.rank // self.size, units * (self.rank + 1) // self.size
        return range(first * unit, last * unit)

    def heads(self, num_heads: int, num_kv_heads: int) -> tuple[range, range]:
        """Return this rank's query heads and the KV heads that they look at.

        KV heads are held by every rank that looks at them, so neighbours may hold the same one. Raise WorldError where
        there are more ranks than query heads.
        """
        if self.size > num_heads:
            raise WorldError(
                f"cannot cut {num_heads} attention heads into {self.size} shards; use at most {num_heads} ranks"
            )
        heads = self.of(num_heads)
        group = num_heads // num_kv_heads
        return heads, range(heads[0] // group, heads[-1] // group + 1)

    def others(self) -> list[Shard]:
        """Return the shards of all ranks, in rank order."""
        return [Shard(rank, self.size) for rank in range(self.size)]
