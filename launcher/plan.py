"""Print what a model will take, without loading it: `python -m ollampi.launcher.plan MODEL key=value...`."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ollampi.launcher.config import CONF
from ollampi.launcher.kinds import Bytes, Kind, Number
from ollampi.launcher.model_path import model_path, no_model
from ollampi.launcher.settings import SETTINGS, parse
from ollampi.launcher.words import table
from ollampi.mpiruntime import synchronization
from ollampi.mpiruntime.checkpoint import open_checkpoint
from ollampi.mpiruntime.errors import CheckpointError, ConfigError, ModelError, OllampiError
from ollampi.mpiruntime.memory import human
from ollampi.mpiruntime.model_config import ModelConfig, read_config
from ollampi.mpiruntime.placing import DTYPES
from ollampi.mpiruntime.plan import RankPlan, Wanted, largest_context, num_parameters, plan, reduced_bytes
from ollampi.mpiruntime.source import Source
from ollampi.mpiruntime.world import free_memory

_JSON = "--json"
OPTIONS: dict[str, tuple[Kind, Any]] = {
    "ranks": (Number(int, 1, 4096), 1),
    "hosts": (Number(int, 1, 4096), 1),
    "memory": (Bytes(), None),
    "ctx": (SETTINGS["engine.context_length"], 4096),
    "dtype": (SETTINGS["dtype"], "auto"),
    "quantize": (SETTINGS["quantize"], "auto"),
    "cache_dtype": (SETTINGS["engine.cache_dtype"], "auto"),
    "experts": (SETTINGS["experts"], "cut"),
    "synchronization_points": (SETTINGS["exchange.synchronization_points"], "all"),
    "stream": (SETTINGS["stream"], "auto"),
    "prefetch_factor": (SETTINGS["exchange.prefetch_factor"], 2),
}


def options(given: Sequence[str]) -> dict[str, Any]:
    """Return the options by name; raise ConfigError for one that cannot be used."""
    values = {name: default for name, (_, default) in OPTIONS.items()}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or name not in OPTIONS:
            raise ConfigError(f"{text!r} is no option of plan; write key=value, with one of: {', '.join(OPTIONS)}")
        values[name] = parse(OPTIONS[name][0], name, value)
    if values["hosts"] > values["ranks"]:
        raise ConfigError(
            f"hosts is {values['hosts']}; there are {values['ranks']} ranks, and each host has one at least"
        )
    return values


def find(given: str) -> Path:
    """Return the folder of a model by its path, that of its config.json, or the name of one that ships."""
    path = Path(given).expanduser()
    found = model_path(str(path.parent if path.name == "config.json" else path)) or model_path(
        str(CONF / "models" / given)
    )
    if found is None:
        raise ModelError(no_model(given, [path.name for path in (CONF / "models").iterdir()]))
    return found


@dataclass(frozen=True)
class Streaming:
    """How many layers are to be streamed, what the host that takes most takes then, and what a rank reads in a step."""

    layers: int
    host_bytes: int
    step_bytes: int


@dataclass(frozen=True)
class Planned:
    """What a model would take: of each rank, of the host that takes most with `context` tokens, and what there is.

    streaming: how it can be served with layers streamed, None where that is not wanted or no help.
    """

    folder: Path
    config: ModelConfig
    ranks: list[RankPlan]
    context: int
    needed_bytes: int
    memory_bytes: int
    longest: int
    points: str
    streaming: Streaming | None


def planned(given: str, values: dict[str, Any]) -> Planned:
    """Return the plan; raise OllampiError where the model cannot be served so."""
    folder = find(given)
    config = read_config(folder)
    dtype = DTYPES.get(config.dtype, "float32") if values["dtype"] == "auto" else values["dtype"]
    size, context = values["ranks"], min(values["ctx"], config.max_context)
    spread = values["experts"] == "spread"
    ranks = plan(config, Wanted(size, dtype, values["quantize"], values["cache_dtype"], spread), _sources(folder))
    hosts = [rank * values["hosts"] // size for rank in range(size)]
    memory = values["memory"] or free_memory()
    needed, longest = _host_bytes(ranks, hosts, context), largest_context(config, ranks, hosts, memory)
    counts = {"never": range(0), "always": range(config.num_layers, config.num_layers + 1)}.get(
        values["stream"], range(1, config.num_layers + 1 if needed > memory else 0)
    )
    streams = (_streaming(ranks, hosts, context, count, values["prefetch_factor"]) for count in counts)
    streaming = next((found for found in streams if found.host_bytes <= memory), None)
    points = values["synchronization_points"]
    return Planned(folder, config, ranks, context, needed, memory, longest, points, streaming)


def _host_bytes(ranks: list[RankPlan], hosts: list[int], context: int) -> int:
    """Return what the host that takes most takes; hosts: of each rank the number of its host."""
    return max(
        sum(rank.total_bytes(context) for rank, its in zip(ranks, hosts, strict=True) if its == host)
        for host in set(hosts)
    )


def _streaming(ranks: list[RankPlan], hosts: list[int], context: int, count: int, prefetch_factor: int) -> Streaming:
    """Return what ranks take where so many layers are streamed."""
    ranks = [rank.streamed(count, prefetch_factor) for rank in ranks]
    return Streaming(count, _host_bytes(ranks, hosts, context), max(rank.step_bytes for rank in ranks))


def told(made: Planned, values: dict[str, Any]) -> str:
    """Return a plan as text."""
    config, context = made.config, made.context
    fits = "fits" if made.needed_bytes <= made.memory_bytes else "does NOT fit"
    fits += f" into {human(made.memory_bytes)} ({'given' if values['memory'] else 'free here'})"
    lines = [_head(made.folder, config), "", table(_rows(made.ranks, context)).rstrip(), ""]
    of_model = " (the model's limit)" if context < values["ctx"] else ""
    lines += [
        f"per host: at most {human(made.needed_bytes)} with a context of {context} tokens{of_model}, which {fits}"
    ]
    if made.streaming is not None:
        lines += [
            f"with cache=FOLDER {made.streaming.layers} of {config.num_layers} layers are streamed: per host at most"
            f" {human(made.streaming.host_bytes)}, and a rank reads {human(made.streaming.step_bytes)} in every step"
        ]
    model_limit = " (the model's limit)" if made.longest == config.max_context else ""
    lines += [f"largest context of one text: {f'{made.longest} tokens{model_limit}' if made.longest else 'none fits'}"]
    return "\n".join([*lines, *_exchange(config, len(made.ranks), made.points), ""])


def facts(made: Planned) -> dict[str, Any]:
    """Return a plan as JSON: sizes in bytes, of each rank with a context of `context_length` tokens."""
    count, each = reduced_bytes(made.config, made.points)
    return {
        "model": made.folder.name,
        "folder": str(made.folder),
        "architecture": made.config.model_type,
        "parameter_count": num_parameters(made.config),
        "context_length": made.context,
        "largest_context": made.longest,
        "host_bytes": made.needed_bytes,
        "memory_bytes": made.memory_bytes,
        "fits": made.needed_bytes <= made.memory_bytes,
        "streamed": None if made.streaming is None else asdict(made.streaming),
        "all_reduces": count if len(made.ranks) > 1 else 0,
        "all_reduce_bytes": each,
        "approximate": synchronization.is_approximate(made.config, made.points, len(made.ranks)),
        "ranks": [
            {
                "heads": rank.heads[1] - rank.heads[0],
                "kv_heads": rank.kv_heads[1] - rank.kv_heads[0],
                "weight_bytes": rank.weight_bytes,
                "cache_bytes": rank.position_bytes * made.context,
                "total_bytes": rank.total_bytes(made.context),
            }
            for rank in made.ranks
        ],
    }


def _sources(folder: Path) -> dict[str, Source] | None:
    """Return the tensors of the checkpoint, None where there is only a config."""
    try:
        return open_checkpoint(folder).sources
    except CheckpointError:
        if any(folder.glob("*.safetensors")):
            raise
        return None


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
    rows: list[tuple[str, ...]] = [("RANKS", "HEADS EACH", "WEIGHTS", "CACHE", "TOTAL EACH")]
    first = 0
    for number, rank in enumerate(ranks):
        last = number + 1 == len(ranks) or _sizes(ranks[number + 1]) != _sizes(rank)
        if last:
            held = [rank.weight_bytes, rank.position_bytes * context, rank.total_bytes(context)]
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


def main(arguments: Sequence[str]) -> int:
    """Print the plan, with --json as JSON, or what is wrong; return the exit status."""
    model, *given = [argument for argument in arguments if argument != _JSON]
    try:
        values = options(given)
        made = planned(model, values)
        print(json.dumps(facts(made), indent=2) + "\n" if _JSON in arguments else told(made, values), end="")
    except OllampiError as e:
        print(f"Error: {e}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
