"""Go through decoder layers with one sum over ranks in each: what an MLP makes is summed with the next attention."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from ollampi.mpiruntime.communicator import summable
from ollampi.mpiruntime.decoder_layer import DecoderLayer, Passage, Travel


def deferred(layers: Iterable[DecoderLayer], x: Tensor, travel: Travel) -> Passage:
    """Return x [T, D] behind the layers in fp32, maybe in the place of x; collective.

    Attention sees x and this rank's part of the MLP before it, so that the result depends on the number of ranks and
    is exact on one. The MLP and a router see what is the same on all ranks. Of the ways that docs/exchange.md compares
    this one loses least. The layers have norms before their parts only.
    """
    owed: Tensor | None = None
    before: DecoderLayer | None = None
    for layer in layers:
        seen = x if owed is None or before is None else x + before.mlp.part.summed(owed.clone())
        mixed = layer.attention.partial(seen, travel.mixing)
        wait = travel.start(mixed if owed is None else summable(mixed) + owed)
        yield
        found = layer.attention.part.summed(wait())
        x += found if before is None else before.mlp.part.summed(found)
        travel.watch(f"the attention of layer {layer.number}", x)
        owed, before = summable(layer.mlp.partial(x)), layer
    if owed is not None and before is not None:
        wait = travel.start(owed)
        yield
        x += before.mlp.part.summed(wait())
        travel.watch(f"the MLP of layer {before.number}", x)
    return x
