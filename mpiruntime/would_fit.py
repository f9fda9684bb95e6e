"""Say what of a model would fit where what was asked for does not: on more ranks, or in fewer bits. Rank 0 only."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace

from ollampi.mpiruntime.cluster import Wish
from ollampi.mpiruntime.engine_settings import EngineSettings
from ollampi.mpiruntime.errors import ModelError
from ollampi.mpiruntime.memory import BITS
from ollampi.mpiruntime.strategy import Chooser, Groups, Layout


def would_fit(chooser: Chooser, wish: Wish, layout: Layout | None) -> str:
    """Return in words the largest that would fit, to end a sentence about what does not.

    First the weights as they are on the fewest more ranks, then 8 bits, then 4. layout: where the model was to lie,
    None where the wish decides. The context that would fit is known where the memory is summed up (`cache_size.room`).
    """
    groups = chooser.tried(wish) if layout is None else layout.groups
    settings = chooser.settings_of(wish.strategy) if layout is None else layout.settings
    for shards, quantize, tried in _smaller(chooser, groups, settings):
        with suppress(ModelError):
            chooser.fits(tried, replace(settings, quantize=quantize))
            parts = [f"shards={shards}" if shards > len(groups[0]) else ""]
            parts += [f"quantize={quantize}" if quantize != settings.quantize else ""]
            return f"it would fit with {' and '.join(part for part in parts if part)}"
    return "nor would it in fewer bits or on more of these ranks"


def _smaller(chooser: Chooser, groups: Groups, settings: EngineSettings) -> Iterator[tuple[int, str, Groups]]:
    """Yield what takes less of each rank, the largest first: how many shards, in which format, on which ranks."""
    own = len(groups[0])
    most = chooser.most_shards(len(groups))
    fewer = [] if settings.deterministic else [name for name in BITS if _bits(name) < _bits(settings.quantize)]
    for quantize in [settings.quantize, *fewer]:
        if quantize != settings.quantize:
            yield own, quantize, groups
        for shards in range(own + 1, most + 1):
            yield shards, quantize, chooser.spread(shards, len(groups))


def _bits(quantize: str) -> int:
    """Return the bits of a format, more than any for one that leaves weights as they are."""
    return BITS.get(quantize, 64)
