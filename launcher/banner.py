"""Say what a started server consists of: its ranks, its address, a first request."""

from __future__ import annotations

import json
from pathlib import Path

from ollampi.api.pooling import POOLING_FILE
from ollampi.kernels.choice import Choice
from ollampi.mpiruntime.hosted_model import HostedModel
from ollampi.mpiruntime.memory import human
from ollampi.mpiruntime.world import RankFacts

KEY_HEADER = '-H "Authorization: Bearer $OLLAMA_API_KEY" '  # of curl; a shell puts the key there


def exposure(bound: tuple[str, int], has_keys: bool) -> str:
    """Return a warning where other machines can reach the server, empty where they cannot."""
    host, _ = bound
    if host.startswith("127.") or host == "::1":
        return ""
    where = "on all interfaces" if host in ("0.0.0.0", "::") else f"at {host}"
    return f"it listens {where}" + (
        "" if has_keys else ", and asks nobody for a key: server.keys=FILE (docs/security.md)"
    )


def banner(
    hosted: HostedModel,
    facts: list[RankFacts],
    library: str,
    exchange: str,
    choice: Choice,
    address: str,
    warning: str = "",
    header: str = "",
) -> str:
    """Return one table with a line per rank, the URL and a curl line to paste.

    library: whose MPI it is; exchange: how the ranks exchange tensors, empty where there is one; choice: the kernels;
    warning: what `exposure` says; header: KEY_HEADER where requests must have a key.
    """
    on_gpus = any(fact.gpu for fact in facts)
    devices = ["device"] if on_gpus else []
    rows = [["rank", "host", *devices, "cores", "threads", "heads", "KV heads", "weights", "KV cache", "read"]]
    for report in hosted.reports:
        fact = facts[report.rank]
        held = [human(n) for n in (report.weight_bytes, report.cache_bytes, report.read_bytes)]
        places = [f"{fact.device} ({fact.gpu})"] if on_gpus else []
        places += [_ranges(fact.cores), str(fact.threads), _span(report.heads), _span(report.kv_heads)]
        rows.append([str(fact.rank), fact.host, *places, *held])
    limit = " (the model's limit)" if hosted.context == hosted.config.max_context else ""
    cache = f"cache of {hosted.cache_tokens} tokens in {hosted.cache_dtype}"
    formats = hosted.reports[0].formats
    kept = " and ".join(dict.fromkeys([*formats, hosted.dtype]))
    head = f"{hosted.ref.name} in {kept}, context {hosted.context}{limit}, {cache}, {library}"
    lines = [head, "", *_aligned(rows)]
    if exchange:
        lines.append(f"tensors are exchanged through {exchange}")
    if hosted.synchronization:
        lines.append(hosted.synchronization)
    if not hosted.settings.deterministic and not on_gpus:
        lines += [f"weights in {name} are multiplied by {choice.told(name)}" for name in formats]
    lines += _streamed(hosted)
    if hosted.draft is not None:
        held = [human(report.weight_bytes + report.cache_bytes) for report in hosted.draft.reports]
        lines.append(f"{hosted.draft.name} drafts for it; weights and cache per rank: {', '.join(held)}")
    if hosted.ref.adapters:
        lines.append(f"merged into it: {', '.join(hosted.ref.adapters)}")
    unread = hosted.reports[0].unread
    if unread:
        lines.append(f"{len(unread)} tensors of the checkpoint are not used, such as {unread[0]}")
    name = hosted.ref.name.removesuffix(":latest")
    route, body = _first_request(hosted)
    curl = f"  curl {header}{address}/api/{route} -d '{json.dumps({'model': name, **body})}'"
    return "\n".join([*lines, "", f"serving at {address}", *([warning] if warning else []), curl, ""])


def _streamed(hosted: HostedModel) -> list[str]:
    """Return a line where layers are read in every step."""
    if not hosted.num_streamed:
        return []
    most, count = max(report.step_bytes for report in hosted.reports), hosted.config.num_layers
    return [f"{hosted.num_streamed} of {count} layers are streamed: a rank reads {human(most)} in every step"]


def _first_request(hosted: HostedModel) -> tuple[str, dict[str, object]]:
    """Return the route and the fields of a request to try; some models make embeddings only."""
    if hosted.config.has_head and not (Path(hosted.ref.path) / POOLING_FILE).is_file():
        return "generate", {"prompt": "Write the function close. Close the file.", "options": {"num_predict": 100}}
    return "embed", {"input": "Close the file."}


def _aligned(rows: list[list[str]]) -> list[str]:
    """Return the rows as lines with right-aligned columns under a ruled head."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    return [lines[0], "-" * len(lines[0]), *lines[1:]]


def _span(bounds: tuple[int, int]) -> str:
    """Return [first, last) as people count it, such as "0-3" or "0"."""
    return _ranges(list(range(*bounds)))


def _ranges(numbers: list[int]) -> str:
    """Return sorted numbers as ranges, such as "0-3,8"."""
    runs: list[list[int]] = []
    for n in numbers:
        if runs and n == runs[-1][1] + 1:
            runs[-1][1] = n
        else:
            runs.append([n, n])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)
