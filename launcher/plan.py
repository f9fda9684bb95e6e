"""Print what a model will take, without loading it: `python -m ollampi.launcher.plan MODEL key=value...`."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ollampi.launcher.home import cache_folder
from ollampi.launcher.kinds import Bytes, Kind, Number
from ollampi.launcher.model_path import find_model
from ollampi.launcher.plan_times import Estimator, assumptions
from ollampi.launcher.plan_words import Held, Planned, Streaming, facts, told
from ollampi.launcher.settings import SETTINGS, parse
from ollampi.mpiruntime.checkpoint import open_checkpoint
from ollampi.mpiruntime.cores import usable_cores
from ollampi.mpiruntime.cost_fit import fit_key, read_fit
from ollampi.mpiruntime.errors import CheckpointError, ConfigError, ModelError, OllampiError, WorldError
from ollampi.mpiruntime.model_config import ModelConfig, read_config
from ollampi.mpiruntime.placing import DTYPES
from ollampi.mpiruntime.plan import RankPlan, Wanted, largest_context, plan
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
    "shards": (Number(int, 1, 4096, or_null=True), None),
    "streams": (Number(int, 1, 65536), 1),
    "prompt": (Number(int, 1, 1 << 20), 512),
    "cores": (Number(int, 1, 65536, or_null=True, note="of each host"), None),
    "gflops": (Number(float, 1e-3, 1e9, or_null=True, note="of each core"), None),
    "gbytes": (Number(float, 1e-3, 1e9, or_null=True, note="that a host reads in a second"), None),
    "latency_us": (Number(float, 0, 1e9, or_null=True, note="of a trip between hosts"), None),
    "gbit": (Number(float, 1e-6, 1e9, or_null=True, note="between hosts"), None),
    "level": (SETTINGS["exchange.compression_level"], 2),
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


def planned(given: str, values: dict[str, Any]) -> Planned:
    """Return the plan; raise OllampiError where the model cannot be served so."""
    folder = find_model(given)
    config = read_config(folder)
    dtype = DTYPES.get(config.dtype, "float32") if values["dtype"] == "auto" else values["dtype"]
    shards, context = values["shards"] or values["ranks"], min(values["ctx"], config.max_context)
    wanted = Wanted(shards, dtype, values["quantize"], values["cache_dtype"], values["experts"] == "spread")
    sources = _sources(folder)
    one, replicas = _replica(config, wanted, sources, values), values["ranks"] // shards
    ranks = one * replicas
    hosts = [rank * values["hosts"] // values["ranks"] for rank in range(len(ranks))]
    memory = values["memory"] or free_memory()
    needed, longest = _host_bytes(ranks, hosts, context), largest_context(config, ranks, hosts, memory)
    counts = {"never": range(0), "always": range(config.num_layers, config.num_layers + 1)}.get(
        values["stream"], range(1, config.num_layers + 1 if needed > memory else 0)
    )
    streams = (_streaming(ranks, hosts, context, count, values["prefetch_factor"]) for count in counts)
    streaming = next((found for found in streams if found.host_bytes <= memory), None)
    points, key = values["synchronization_points"], fit_key(values["quantize"], values["dtype"])
    cores = usable_cores(os.environ, len(os.sched_getaffinity(0)))
    basis = assumptions(values, read_fit(cache_folder(os.environ), key), cores, context)
    made = Estimator(config, wanted, points, sources, basis, values["ranks"], memory, context)
    left = values["ranks"] - len(ranks)
    held = Held(one, replicas, left, context, needed, memory, longest)
    return Planned(folder, config, held, points, streaming, made.rows(shards), basis)


def _replica(
    config: ModelConfig, wanted: Wanted, sources: dict[str, Source] | None, values: dict[str, Any]
) -> list[RankPlan]:
    """Return what the ranks of a replica hold; raise ConfigError or ModelError where there can be none."""
    if wanted.size > values["ranks"]:
        raise ConfigError(f"shards is {wanted.size}; there are {values['ranks']} ranks, and each has one at most")
    if values["shards"] and wanted.size > config.num_heads:
        cut = f"cannot cut {config.num_heads} attention heads into {wanted.size} shards"
        raise ModelError(f"{cut}; give shards={config.num_heads} or less")
    try:
        return plan(config, wanted, sources)
    except WorldError as e:
        raise ModelError(f"{e}, or name shards, so that the ranks hold replicas") from e


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


def _sources(folder: Path) -> dict[str, Source] | None:
    """Return the tensors of the checkpoint, None where there is only a config."""
    try:
        return open_checkpoint(folder).sources
    except CheckpointError:
        if any(folder.glob("*.safetensors")):
            raise
        return None


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
