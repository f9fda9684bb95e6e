"""Hold a plan, and tell it to people and programs."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ollampi.launcher.plan_times import Assumptions, Estimated
from ollampi.launcher.words import table
from ollampi.mpiruntime import synchronization
from ollampi.mpiruntime.memory import RUNTIME_BYTES, human
from ollampi.mpiruntime.model_config import ModelConfig
from ollampi.mpiruntime.plan import RankPlan, num_parameters, reduced_bytes


@dataclass(frozen=True)
class Streaming:
    """How many layers are to be streamed, what the host that takes most takes then, and what a rank reads in a step."""

    layers: int
    host_bytes: int
    step_bytes: int


@dataclass(frozen=True)
class Held:
    """What ranks hold. ranks: of one replica, of which there are so many; left: ranks that hold none.

    needed_bytes: of the host that takes most, with `context` tokens; memory_bytes: of each host; longest: the largest
    context.
    """

    ranks: list[RankPlan]
    replicas: int
    left: int
    context: int
    needed_bytes: int
    memory_bytes: int
    longest: int


@dataclass(frozen=True)
class Planned:
    """What a model would take. streaming: how it can be served with layers streamed, None where that is no help.

    estimates: by the cost model, from what is given.
    """

    folder: Path
    config: ModelConfig
    held: Held
    points: str
    streaming: Streaming | None
    estimates: list[Estimated]
    given: Assumptions


def told(made: Planned, values: dict[str, Any]) -> str:
    """Return a plan as text."""
    config, context = made.config, made.held.context
    fits = "fits" if made.held.needed_bytes <= made.held.memory_bytes else "does NOT fit"
    fits += f" into {human(made.held.memory_bytes)} ({'given' if values['memory'] else 'free here'})"
    lines = [_head(made.folder, config), "", table(_rows(made.held.ranks, context)).rstrip(), ""]
    if made.held.replicas > 1 or made.held.left:
        count, size, rest = made.held.replicas, len(made.held.ranks), made.held.left
        left = f"; {rest} rank{'s are' if rest > 1 else ' is'} left over" if rest else ""
        lines.append(f"{count} replica{'s' * (count > 1)} of {size} shard{'s' * (size > 1)}{left}")
    of_model = " (the model's limit)" if context < values["ctx"] else ""
    lines += [
        f"per host: at most {human(made.held.needed_bytes)} with a context of {context} tokens{of_model}, which {fits}"
    ]
    if made.streaming is not None:
        lines += [
            f"with cache=FOLDER {made.streaming.layers} of {config.num_layers} layers are streamed: per host at most"
            f" {human(made.streaming.host_bytes)}, and a rank reads {human(made.streaming.step_bytes)} in every step"
        ]
    model_limit = " (the model's limit)" if made.held.longest == config.max_context else ""
    longest = f"{made.held.longest} tokens{model_limit}" if made.held.longest else "none fits"
    lines += [f"largest context of one text: {longest}"]
    lines += _exchange(config, len(made.held.ranks), made.points)
    return "\n".join([*lines, "", table(_times(made.estimates, made.given)).rstrip(), "", *_assumed(made.given), ""])


def facts(made: Planned) -> dict[str, Any]:
    """Return a plan as JSON: sizes in bytes, of each rank with a context of `context_length` tokens."""
    count, each = reduced_bytes(made.config, made.points)
    return {
        "model": made.folder.name,
        "folder": str(made.folder),
        "architecture": made.config.model_type,
        "parameter_count": num_parameters(made.config),
        "context_length": made.held.context,
        "largest_context": made.held.longest,
        "host_bytes": made.held.needed_bytes,
        "memory_bytes": made.held.memory_bytes,
        "fits": made.held.needed_bytes <= made.held.memory_bytes,
        "streamed": None if made.streaming is None else asdict(made.streaming),
        "all_reduces": count if len(made.held.ranks) > 1 else 0,
        "all_reduce_bytes": each,
        "approximate": synchronization.is_approximate(made.config, made.points, len(made.held.ranks)),
        "ranks": [
            {
                "heads": rank.heads[1] - rank.heads[0],
                "kv_heads": rank.kv_heads[1] - rank.kv_heads[0],
                "weight_bytes": rank.weight_bytes,
                "cache_bytes": rank.position_bytes * made.held.context,
                "runtime_bytes": RUNTIME_BYTES,
                "total_bytes": rank.total_bytes(made.held.context),
            }
            for rank in made.held.ranks
        ],
        "replicas": made.held.replicas,
        "estimates": [asdict(row) for row in made.estimates],
        "assumptions": asdict(made.given),
    }


def _head(folder: Path, config: ModelConfig) -> str:
    """Return the first line."""
    count = num_parameters(config)
    weights = f"{count / 1e9:.2f} billion" if count >= 1e9 else f"{count / 1e6:.2f} million"
    experts = f", {config.experts.per_token} of {config.experts.count} experts" if config.experts else ""
    return (
        f"{folder.name}: {config.model_type}, {weights} weights, {config.num_layers} layers of width {config.width},"
        f" {config.num_heads} heads over {config.num_kv_heads} KV heads{experts}"
    )


def _rows(ranks: list[RankPlan], context: int) -> list[tuple[str, ...]]:
    """Return the table; neighbours that hold as much share a line."""
    rows: list[tuple[str, ...]] = [("RANKS", "HEADS EACH", "WEIGHTS", "CACHE", "RUNTIME", "TOTAL EACH")]
    first = 0
    for number, rank in enumerate(ranks):
        last = number + 1 == len(ranks) or _sizes(ranks[number + 1]) != _sizes(rank)
        if last:
            held = [rank.weight_bytes, rank.position_bytes * context, RUNTIME_BYTES, rank.total_bytes(context)]
            heads, kv_heads = (span[1] - span[0] for span in (rank.heads, rank.kv_heads))
            span = str(first) if first == number else f"{first}-{number}"
            rows.append((span, f"{heads} over {kv_heads}", *map(human, held)))
            first = number + 1
    return rows


def _sizes(rank: RankPlan) -> tuple[int, ...]:
    """Return what tells a rank from another in the table."""
    heads, kv_heads = (span[1] - span[0] for span in (rank.heads, rank.kv_heads))
    return heads, kv_heads, rank.weight_bytes, rank.position_bytes


def _exchange(config: ModelConfig, size: int, points: str) -> list[str]:
    """Return what the ranks send each other for one token."""
    if size == 1:
        return []
    count, each = reduced_bytes(config, points)
    marked = synchronization.told(config, points, size)
    sent = 2 * (size - 1) * count * each // size
    return [
        f"exchange per token: {count} all-reduces of {human(each)}, for which each rank sends {human(sent)} at least;"
        f" {human(config.vocab_size * 4 * (size - 1) // size)} of logits to rank 0 for each token of an answer",
        *([marked] if marked else []),
    ]


def _times(rows: list[Estimated], given: Assumptions) -> list[tuple[str, ...]]:
    """Return the table of the estimates."""
    answers = f"TOKENS/S, {given.streams} IN EACH"
    head = ("SHARDS", "REPLICAS", "HOSTS EACH", "MS PER TOKEN", "PROMPT TOKENS/S", answers, "A RANK HOLDS")
    found: list[tuple[str, ...]] = [head]
    for row in rows:
        counts = [str(row.shards), str(row.replicas), str(row.hosts)]
        token = "-" if row.token_s is None else digits(row.token_s * 1e3)
        all_ = "-" if row.tokens_per_s is None else digits(row.tokens_per_s)
        held = human(row.rank_bytes) + ("" if row.fits else ", does NOT fit")
        found.append((*counts, token, digits(row.prompt_tokens_per_s), all_, held))
    return found


def _assumed(given: Assumptions) -> list[str]:
    """Return what the estimates rest on."""
    constants = given.constants
    source = "fitted to steps on this machine" if given.fitted else "assumed, of the right order on any machine"
    link = f"{8e-9 / constants.far_byte_s:.3g} Gbit/s" if constants.far_byte_s else "a link without a limit"
    level = f"codes of level {given.level} where they pay" if given.level else "no codes"
    return [
        f"estimated by docs/cost-model.md, on CPUs, with constants that are {source}, unless given:",
        f"  a host: {given.cores} cores, {_rate(constants.many_flop_s)} GFLOP/s each in prompts,"
        f" {_rate(constants.few_flop_s)} in answers; memory {_rate(constants.host_byte_s)} GB/s,"
        f" {_rate(constants.core_byte_s)} for a core; {given.local} rank{'s' * (given.local > 1)}",
        f"  between hosts: {link}, {constants.far_trip_s * 1e6:.4g} us for a trip, {level}; sums do not hide",
        f"  beside: {constants.step_s * 1e3:.3g} ms for a step, {constants.row_s * 1e3:.3g} for an answer in it,"
        f" {constants.layer_s * 1e3:.3g} for a layer, {constants.follow_s * 1e3:.3g} for other ranks",
        f"  answers of {given.position} tokens, prompts in steps of {given.prompt}; one token alone while nothing else"
        f" runs, {given.streams} answer{'s' * (given.streams > 1)} in each replica while all do",
    ]


def _rate(unit_s: float) -> str:
    """Return how many billions a second are of what takes so long."""
    return f"{1e-9 / unit_s:.3g}" if unit_s else "unlimited"


def digits(number: float) -> str:
    """Return a number with three digits, and all of those before the point."""
    return f"{number:.0f}" if number >= 100 else f"{number:.3g}"
