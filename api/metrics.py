"""Answer GET /metrics: what the engine, its ranks and this process counted, in Prometheus' text format."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from itertools import accumulate
from typing import Any

from flask import Flask, Response, g, request
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest

from ollampi.api.access import Permission
from ollampi.api.engine_client import Engine
from ollampi.api.routes import Route
from ollampi.mpiruntime.request import Sample

FAMILIES = {  # name: labels, kind, help; docs/metrics.md has the same
    "ollampi_models_loaded": ((), "gauge", "Models in memory."),
    "ollampi_requests_running": (("model",), "gauge", "Requests that hold cache and are computed."),
    "ollampi_requests_waiting": (("model",), "gauge", "Requests that wait for room in the batch or the cache."),
    "ollampi_requests_waiting_for_model": ((), "gauge", "Requests that wait until another model lets go of its place."),
    "ollampi_requests_total": (("model", "outcome"), "counter", "Requests that ended, by outcome."),
    "ollampi_replica_requests_total": (("model", "ranks", "outcome"), "counter", "The same of one replica."),
    "ollampi_requests_refused_total": (("code",), "counter", "Requests that the engine did not take, by reason."),
    "ollampi_prompt_tokens_total": (("model",), "counter", "Tokens of the prompts that were taken."),
    "ollampi_generated_tokens_total": (("model",), "counter", "Tokens generated."),
    "ollampi_time_to_first_token_seconds": (("model",), "histogram", "From the queue to the first token."),
    "ollampi_inter_token_seconds": (("model",), "histogram", "Between two tokens of one answer."),
    "ollampi_preemptions_total": (("model",), "counter", "Requests sent back to the queue because the cache was full."),
    "ollampi_cache_blocks": (("model",), "gauge", "Blocks of the KV cache."),
    "ollampi_cache_blocks_used": (("model",), "gauge", "Blocks of the KV cache that running requests hold."),
    "ollampi_prefix_cache_lookups_total": (("model",), "counter", "Looks for a prompt's beginning in the cache."),
    "ollampi_prefix_cache_hits_total": (("model",), "counter", "Looks that found some of it."),
    "ollampi_prefix_cache_tokens_total": (("model",), "counter", "Tokens taken from the cache instead of computed."),
    "ollampi_draft_tokens_proposed_total": (("model",), "counter", "Tokens proposed by speculative decoding."),
    "ollampi_draft_tokens_accepted_total": (("model",), "counter", "Proposed tokens that were right."),
    "ollampi_step_seconds": (("model", "rank"), "histogram", "Forward passes, exchange included."),
    "ollampi_step_phase_seconds_total": (("model", "rank", "phase"), "counter", "Time of the parts of steps."),
    "ollampi_step_tokens_total": (("model", "rank"), "counter", "Tokens that went through the model."),
    "ollampi_exchange_calls_total": (("model", "rank", "kind"), "counter", "Tensors exchanged between ranks."),
    "ollampi_exchange_seconds_total": (("model", "rank", "kind"), "counter", "Time of exchange, waiting included."),
    "ollampi_exchange_bytes_total": (("model", "rank", "kind"), "counter", "Bytes that the rank put into exchange."),
    "ollampi_exchange_wire_bytes_total": (("model", "rank", "kind"), "counter", "Bytes sent and received, as codes."),
    "ollampi_node_status": (("rank", "status"), "gauge", "1 for the status that a rank has, 0 for the others."),
    "ollampi_node_changes_total": (("rank",), "counter", "Changes of a rank's status or faults."),
    "ollampi_node_faults": (("rank",), "gauge", "What self-tests find wrong with a rank."),
    "ollampi_node_heartbeat_age_seconds": (("rank",), "gauge", "Since the last heartbeat of a rank."),
    "ollampi_node_cpu_percent": (("rank",), "gauge", "Of one core, that the rank's process uses."),
    "ollampi_node_memory_bytes": (("rank",), "gauge", "Memory of the rank's host, or its limit."),
    "ollampi_node_memory_available_bytes": (("rank",), "gauge", "What can be taken of it."),
    "ollampi_node_process_bytes": (("rank",), "gauge", "Memory of the rank's process."),
    "ollampi_node_gpu_memory_bytes": (("rank", "gpu"), "gauge", "Memory of the rank's GPU."),
    "ollampi_node_gpu_memory_available_bytes": (("rank", "gpu"), "gauge", "What is free of it."),
    "ollampi_node_step_seconds": (("rank",), "gauge", "Mean time of the latest steps of a rank."),
    "ollampi_node_step_age_seconds": (("rank",), "gauge", "Since the last step of a rank."),
    "ollampi_self_tests_total": (("outcome",), "counter", "Self-tests of all ranks, by outcome."),
    "ollampi_http_requests_open": ((), "gauge", "HTTP requests that are not answered to the end."),
    "ollampi_http_requests_total": (("route", "status"), "counter", "HTTP requests, by route and status."),
}


class HttpCounts:
    """The requests of this process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open = 0
        self._answers: Counter[tuple[str, str]] = Counter()

    def begin(self) -> None:
        """Count a request that came in."""
        with self._lock:
            self._open += 1

    def answer(self, route: str, status: int) -> None:
        """Count an answer that begins."""
        with self._lock:
            self._answers[route, str(status)] += 1

    def end(self) -> None:
        """Count an answer that is complete, or whose client is gone."""
        with self._lock:
            self._open -= 1

    def samples(self) -> list[Sample]:
        """Return the samples of this process."""
        with self._lock:
            found: list[Sample] = [("ollampi_http_requests_open", {}, self._open)]
            for (route, status), count in self._answers.items():
                found.append(("ollampi_http_requests_total", {"route": route, "status": status}, count))
        return found


class Exposition:
    """Samples as Prometheus' families, as its library wants to collect them."""

    def __init__(self, samples: list[Sample]) -> None:
        self._samples = samples

    def collect(self) -> Iterator[Metric]:
        """Yield every family, also those without samples."""
        values: dict[str, list[tuple[dict[str, str], Any]]] = {name: [] for name in FAMILIES}
        for name, labels, value in self._samples:
            values[name].append((labels, value))
        for name, (label_names, kind, text) in FAMILIES.items():
            yield _family(name, label_names, kind, text, values[name])


def install_metrics(app: Flask) -> HttpCounts:
    """Make `app` count its requests, also those that the guard refuses; return the counts."""
    counts = HttpCounts()

    @app.before_request
    def begin() -> None:
        """Count a request."""
        counts.begin()
        g.counted = True

    @app.after_request
    def answer(response: Response) -> Response:
        """Return the response, counted."""
        counts.answer(request.url_rule.rule if request.url_rule else "none", response.status_code)
        if g.pop("counted", False):
            response.call_on_close(counts.end)
        return response

    return counts


def metrics_routes(engine: Engine, counts: HttpCounts) -> list[Route]:
    """Return the route GET /metrics, which answers 503 where the engine does not answer."""

    def metrics() -> Response:
        """Answer GET /metrics; raise EngineError."""
        text = generate_latest(Exposition(engine.metrics() + counts.samples()))
        return Response(text, content_type=CONTENT_TYPE_PLAIN_0_0_4)

    return [
        Route(
            "GET",
            "/metrics",
            Permission.READ,
            "what was counted, for Prometheus",
            metrics,
            answer="",
            reasons={503: "", 504: ""},
        )
    ]


def _family(
    name: str, label_names: tuple[str, ...], kind: str, text: str, values: list[tuple[dict[str, str], Any]]
) -> Metric:
    """Return one family with its samples."""
    family: CounterMetricFamily | GaugeMetricFamily | HistogramMetricFamily
    if kind == "histogram":
        family = HistogramMetricFamily(name, text, labels=label_names)
        for labels, value in values:
            family.add_metric([labels[label] for label in label_names], _buckets(value), value["sum"])
        return family
    family = (CounterMetricFamily if kind == "counter" else GaugeMetricFamily)(name, text, labels=label_names)
    for labels, value in values:
        family.add_metric([labels[label] for label in label_names], value)
    return family


def _buckets(value: dict[str, Any]) -> list[tuple[str, float]]:
    """Return each bound with how many values are not above it, from a histogram's counts per range."""
    bounds = [str(bound) for bound in value["bounds"]] + ["+Inf"]
    return list(zip(bounds, accumulate(value["counts"]), strict=True))
