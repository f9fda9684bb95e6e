"""Tell which models are in memory, which one is coming, and what that means for the others. Rank 0 only."""

from __future__ import annotations

from collections.abc import Iterable

from ollampi.mpiruntime.hosted_model import HostedModel
from ollampi.mpiruntime.placed import Coming, Placed, replicas_of
from ollampi.mpiruntime.request import LoadedModel, ModelRef


class Present:
    """The models in memory by name, and the one that is being loaded."""

    def __init__(self) -> None:
        self._placed: dict[str, Placed] = {}
        self._coming: Coming | None = None

    def busy(self) -> list[HostedModel]:
        """Return the replicas that have work and whose ranks are not held up by a load."""
        return [m for m in self.hosted() if not m.idle and not self.is_held_up(m)]

    @property
    def loading(self) -> ModelRef | None:
        """Return the model that is being loaded, if one is; for any thread."""
        coming = self._coming
        return None if coming is None else coming.ref

    @property
    def held_up(self) -> bool:
        """Return whether some ranks do nothing but load a model."""
        return self._coming is not None and self._coming.holds_up

    def hosted(self) -> list[HostedModel]:
        """Return all replicas in memory, those too that finish what they have and then go."""
        return replicas_of(list(self._placed.values()))

    def placed(self) -> list[Placed]:
        """Return the models in memory."""
        return list(self._placed.values())

    def listing(self) -> list[LoadedModel]:
        """Return what /api/ps tells of the models in memory."""
        return [p.listing() for p in self._placed.values()]

    def is_held_up(self, model: HostedModel) -> bool:
        """Return whether a rank of a replica does nothing but load another model."""
        return self.held_up and self.shares_ranks([model])

    def shares_ranks(self, models: Iterable[HostedModel]) -> bool:
        """Return whether a rank of some replicas is loading another model."""
        return self._coming is not None and any(not self._coming.ranks.isdisjoint(model.ranks) for model in models)
