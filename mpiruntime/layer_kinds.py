"""Read from a config what the layers of one model differ in: windows, rotary embeddings, experts."""

from __future__ import annotations

from dataclasses import dataclass

from ollampi.mpiruntime.config_fields import Fields
from ollampi.mpiruntime.families import Family
from ollampi.mpiruntime.rope import Rope, parse_rope

_MOST_LAYERS = 4096


@dataclass(frozen=True)
class Layer:
    """What the layers of one model differ in.

    window: how many positions a token sees, itself included, None for all; rope: None where positions have vectors of
    their own; has_experts: a mixture of experts in the place of the MLP.
    """

    window: int | None
    rope: Rope | None
    has_experts: bool = False


def layers_of(fields: Fields, family: Family, head_dim: int, max_context: int) -> tuple[Layer, ...]:
    """Return what each layer is."""
    count = fields.number("num_hidden_layers", int)
    if count > _MOST_LAYERS:
        raise fields.wrong("num_hidden_layers", f"at most {_MOST_LAYERS} are supported")
    local, everywhere = (_ropes(fields, family, head_dim, max_context)) if not family.encoder else (None, None)
    window = fields.optional("sliding_window", int)
    if (
        window is None
        or window >= max_context
        or not (family.windows_if is None or fields.flag(family.windows_if, False))
    ):
        windowed = [False] * count
    else:
        windowed = _windowed(fields, family, count)
    sliding = _windowed(fields, family, count) if local != everywhere else windowed
    experts = _expert_layers(fields, count)
    return tuple(
        Layer(window if windowed[i] else None, local if sliding[i] else everywhere, experts[i]) for i in range(count)
    )


def _windowed(fields: Fields, family: Family, count: int) -> list[bool]:
    """Return of each layer whether it sees a window only."""
    kinds = fields.items("layer_types")
    if kinds is not None:
        strange = [kind for kind in kinds if kind not in ("full_attention", "sliding_attention")]
        if strange or len(kinds) < count:
            raise fields.wrong("layer_types", f"it must name full_attention or sliding_attention for {count} layers")
        return [kind == "sliding_attention" for kind in kinds[:count]]
    if family.windows == "all":
        return [True] * count
    if family.windows == "late":
        first = fields.number("max_window_layers", int)
        return [i >= first for i in range(count)]
    every = fields.number("sliding_window_pattern", int, int(family.windows))
    return [(i + 1) % every != 0 for i in range(count)]


def _ropes(fields: Fields, family: Family, head_dim: int, max_context: int) -> tuple[Rope, Rope]:
    """Return the rotary embeddings of layers with a window and of those without."""

    def parsed(scaling: Fields | None, theta: float) -> Rope:
        scaling = scaling or Fields({}, fields.source)
        return parse_rope(fields, scaling, head_dim, max_context, theta, family.ropes)

    given = fields.map("rope_parameters")
    of_kinds = given is not None and any(kind in given.values for kind in ("full_attention", "sliding_attention"))
    if given is not None and of_kinds:  # Gemma 3 in new configs
        theta = fields.number("rope_theta", float, 1e6)
        local = fields.number("rope_local_base_freq", float, 10000.0)
        plain = Fields({key: v for key, v in fields.values.items() if key != "rope_theta"}, fields.source)
        fields = plain
        return parsed(given.map("sliding_attention"), local), parsed(given.map("full_attention"), theta)
    rope = parsed(given or fields.map("rope_scaling"), 10000.0)
    local_theta = fields.optional("rope_local_base_freq", float)
    return (rope if local_theta is None else Rope(rope.dim, local_theta)), rope


def _expert_layers(fields: Fields, count: int) -> list[bool]:
    """Return of each layer whether it has experts."""
    if fields.values.get("num_local_experts") is None and fields.values.get("num_experts") is None:
        return [False] * count
    every, plain = fields.number("decoder_sparse_step", int, 1), fields.items("mlp_only_layers") or []
    return [(i + 1) % every == 0 and i not in plain for i in range(count)]
