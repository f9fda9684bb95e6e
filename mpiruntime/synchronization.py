"""Say how often a model's activations are summed in a layer, and whether that is exact."""

from __future__ import annotations

from ollampi.mpiruntime.model_config import ModelConfig

ONCE = "attention_only"  # of exchange.synchronization_points


def sums_once(config: ModelConfig, points: str, deterministic: bool = False) -> bool:
    """Return whether a layer is summed once: not where norms stand behind its parts, nor where bits must not change."""
    return points == ONCE and config.norms in ("before", "shared") and not deterministic


def num_sums(config: ModelConfig, points: str, deterministic: bool = False) -> int:
    """Return the all-reduces of a step, the one of the embedding's rows included."""
    if not sums_once(config, points, deterministic):
        return 1 + 2 * config.num_layers
    return 1 + config.num_layers + (not config.parallel)  # what the last MLP owes is summed alone


def is_approximate(config: ModelConfig, points: str, size: int, deterministic: bool = False) -> bool:
    """Return whether `size` ranks compute something else than one rank does."""
    return size > 1 and not config.parallel and sums_once(config, points, deterministic)


def told(config: ModelConfig, points: str, size: int, deterministic: bool = False) -> str:
    """Return what attention_only means for a model on `size` ranks, for people; empty where nobody asked for it."""
    if points != ONCE:
        return ""
    asked = f"exchange.synchronization_points={ONCE}"
    if deterministic:
        return f"{asked} is ignored: deterministic=true sums everything"
    if not sums_once(config, points):
        return f"{asked} is ignored: {config.model_type} has norms behind its parts, which need whole sums"
    if config.parallel:
        return f"{asked} is exact for {config.model_type}, whose attention and MLP see the same input"
    if size == 1:
        return f"{asked} is exact on one rank"
    return f"APPROXIMATE: {asked}, attention sees the MLP before it of its own rank only (docs/exchange.md)"
