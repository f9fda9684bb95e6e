"""What is counted on ranks and for requests is what arithmetic says, on every world."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import torch
from support.checkpoints import PROMPT, write_checkpoint
from support.grammars import END, write_speaker
from support.worlds import Scraper, generate, run_engine

from ollampi.api.metrics import FAMILIES
from ollampi.kernels.codec import num_bytes
from ollampi.mpiruntime import metrics
from ollampi.mpiruntime.communicator import Communicator
from ollampi.mpiruntime.compressed import Compressed
from ollampi.mpiruntime.ending import DRAIN
from ollampi.mpiruntime.engine_settings import EngineSettings
from ollampi.mpiruntime.exchange_plan import Choice, always
from ollampi.mpiruntime.health import Health
from ollampi.mpiruntime.inbox import Event
from ollampi.mpiruntime.metrics import Histogram, ModelCounts, RequestMeter, StepCounts
from ollampi.mpiruntime.request import Grammar, Sampling
from ollampi.mpiruntime.shard import Shard
from ollampi.mpiruntime.thread_world import ThreadCommunicator, run_threads
from ollampi.mpiruntime.timed import Timed

GREEDY = Sampling(temperature=0.0)
ONE_BY_ONE = EngineSettings(cache_tokens=128, block_size=4, max_step_tokens=16, max_running=1, max_drafts=0)
WIDTH, LAYERS, VOCABULARY = 64, 2, 203  # of the random checkpoints
SIZES = (1, 2, 3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("model") / "m")


def scrape(
    size: int, messages: list[dict[str, Any]], settings: EngineSettings = ONE_BY_ONE, client: Scraper | None = None
) -> Scraper:
    scraper = client or Scraper(messages)
    run_threads(size, lambda comm: run_engine(comm, messages, settings, scraper if comm.rank == 0 else None))
    return scraper


@pytest.mark.parametrize("size", SIZES)
def test_timed_returns_what_the_inner_one_does_and_counts_it(size: int) -> None:
    def work(comm: Communicator) -> tuple[StepCounts, bool]:
        counts = StepCounts()
        timed = Timed(comm, counts)
        x = torch.full((5, WIDTH), comm.rank + 1.0, dtype=torch.bfloat16)
        same = torch.equal(timed.all_reduce(x), comm.all_reduce(x))
        parts = [c.gather(x[:2, : comm.rank + 3]) for c in (timed, comm)]
        same &= parts == [None, None] if comm.rank else torch.equal(*[p for p in parts if p is not None])
        same &= timed.collect(b"a") == [b"a"] * size and (timed.rank, timed.size) == (comm.rank, comm.size)
        return counts, same

    for rank, (counts, same) in enumerate(run_threads(size, work)):
        assert same
        assert (counts.all_reduce.calls, counts.all_reduce.size_bytes) == (1, 5 * WIDTH * 4)
        assert (counts.gather.calls, counts.gather.size_bytes) == (1, 2 * (rank + 3) * 4)
        assert 0 < counts.exchange_s == counts.all_reduce.seconds + counts.gather.seconds


@pytest.mark.parametrize("size", SIZES)
def test_timed_counts_what_passes_the_wire(size: int) -> None:
    """A one-step sum of 320 numbers in 8 bits, twice, once later; what is gathered has a width before it."""

    def work(comm: ThreadCommunicator) -> None:
        counts, links = StepCounts(), [comm.link(range(size)) for _ in range(2)]
        assert links[0] is not None
        timed = Timed(Compressed(comm, links[0], always(Choice("one_step", 2)), links[1]), counts)
        waits = [timed.all_reduce_later(torch.ones(320)), timed.all_reduce_later(torch.ones(320, dtype=torch.float64))]
        timed.all_reduce(torch.ones(2, 160))
        timed.gather(torch.ones(2, 3 + comm.rank))
        for wait in waits:
            wait()
        assert counts.all_reduce.wire_bytes == 2 * 2 * (size - 1) * num_bytes(2, 320)
        parts = [8 + 4 * 2 * (3 + r) for r in range(1, size)]
        assert counts.gather.wire_bytes == (parts[comm.rank - 1] if comm.rank else sum(parts))
        samples = {(n, labels["kind"]): v for n, labels, v in counts.samples(0, "x") if n.endswith("wire_bytes_total")}
        assert samples["ollampi_exchange_wire_bytes_total", "all_reduce"] == counts.all_reduce.wire_bytes
        assert timed.wire_bytes == sum(samples.values())

    run_threads(size, work)


@pytest.mark.parametrize("size", SIZES)
def test_a_known_workload(folder: Path, size: int) -> None:
    """17 prompt tokens in pieces of 16 and 1, then 7 single ones: 9 steps. The same prompt again: 16 are cached."""
    scraper = scrape(size, [generate(i, folder, PROMPT, sampling=GREEDY, max_tokens=8) for i in (1, 2)])
    steps, tokens, rows = 9 + 8, 17 + 7 + 1 + 7, 16
    for rank in range(size):
        where = {"model": "test:latest", "rank": str(rank)}
        histogram = scraper.sample("ollampi_step_seconds", **where)
        assert sum(histogram["counts"]) == steps
        assert scraper.sample("ollampi_step_tokens_total", **where) == tokens
        calls = {k: scraper.sample("ollampi_exchange_calls_total", kind=k, **where) for k in ("all_reduce", "gather")}
        sent = {k: scraper.sample("ollampi_exchange_bytes_total", kind=k, **where) for k in calls}
        assert calls == {"all_reduce": steps * (1 + 2 * LAYERS), "gather": rows}
        mine = len(Shard(rank, size).of(VOCABULARY))
        assert sent == {"all_reduce": tokens * WIDTH * 4 * (1 + 2 * LAYERS), "gather": rows * mine * 4}
        phases = [scraper.sample("ollampi_step_phase_seconds_total", phase=p, **where) for p in ("compute", "exchange")]
        assert min(phases) > 0
        assert sum(phases) == pytest.approx(histogram["sum"])
        exchange_s = [scraper.sample("ollampi_exchange_seconds_total", kind=k, **where) for k in calls]
        assert sum(exchange_s) == pytest.approx(phases[1])
    for phase in metrics.PHASES:
        assert scraper.sample("ollampi_step_phase_seconds_total", phase=phase) > 0


@pytest.mark.parametrize("size", SIZES)
def test_what_rank_0_counts(folder: Path, size: int) -> None:
    messages = [generate(i, folder, PROMPT, sampling=GREEDY, max_tokens=8) for i in (1, 2)]
    scraper = scrape(size, [*messages, generate(3, folder, [], max_tokens=1), generate(4, folder, PROMPT * 20)])
    for name, value in {
        "models_loaded": 1,
        "requests_running": 0,
        "requests_waiting": 0,
        "requests_waiting_for_model": 0,
        "prompt_tokens_total": 34,
        "generated_tokens_total": 16,
        "prefix_cache_lookups_total": 2,
        "prefix_cache_hits_total": 1,
        "prefix_cache_tokens_total": 16,
        "preemptions_total": 0,
        "draft_tokens_proposed_total": 0,
        "cache_blocks": 256 // 4,  # the model's context needs more than cache_tokens
        "cache_blocks_used": 0,
    }.items():
        assert scraper.sample(f"ollampi_{name}") == value, name
    outcomes = {o: scraper.sample("ollampi_requests_total", outcome=o) for o in ("stop", "length", "cancel", "error")}
    assert outcomes == {"stop": 0, "length": 2, "cancel": 0, "error": 0}
    refused = {c: scraper.sample("ollampi_requests_refused_total", code=c) for c in ("request", "context", "busy")}
    assert refused == {"request": 1, "context": 1, "busy": 0}
    assert sum(scraper.sample("ollampi_time_to_first_token_seconds")["counts"]) == 2
    assert sum(scraper.sample("ollampi_inter_token_seconds")["counts"]) == 14


def test_every_sample_is_of_a_documented_family_with_its_labels(folder: Path) -> None:
    scraper = scrape(2, [generate(1, folder, PROMPT, max_tokens=2)])
    health = Health(2, 1.0, 15.0, 10.0)  # whose samples a server adds to these
    gpus = [{"name": "a GPU", "memory_total": 10, "memory_available": 4}]
    beat = {"cpu_percent": 1.0, "memory_total": 2, "memory_available": 1, "process_bytes": 1, "gpus": gpus}
    health.take(1, {**beat, "step_ms": 3.0, "step_age": 1.0, "work_age": 1.0, "doing": "", "turn": 1}, time.monotonic())
    samples = scraper.last(-1)["samples"] + health.samples()
    assert {name for name, _, _ in samples} == {name for name in FAMILIES if "_http_" not in name}
    for name, labels, value in samples:
        label_names, kind, _ = FAMILIES[name]
        assert set(labels) == set(label_names)
        assert isinstance(value, dict) == (kind == "histogram")
        assert name.endswith("_total") == (kind == "counter")


def test_counts_outlive_the_model(folder: Path) -> None:
    once = generate(1, folder, PROMPT, sampling=GREEDY, max_tokens=3)

    class Twice(Scraper):
        """Unloads the model after the first answer and asks again."""

        def post(self, event: Event) -> None:
            super().post(event)
            if event["kind"] == "done" and event["id"] == 1:
                self.messages.put({"op": "unload", "id": 2, "model": once["request"]["model"]})
                self.messages.put({**once, "id": 3})

    client = Twice([once])
    client.open |= {2, 3}
    scrape(2, [], client=client)
    assert client.sample("ollampi_generated_tokens_total") == 6
    assert client.sample("ollampi_step_tokens_total", rank="1") == 2 * (17 + 2)
    assert client.sample("ollampi_prefix_cache_hits_total") == 0  # its cache was lost with it


def test_a_small_cache_is_seen_in_preemptions(folder: Path) -> None:
    small = EngineSettings(cache_tokens=32, context_length=32, block_size=4, max_step_tokens=16)
    messages = [generate(i, folder, PROMPT[: 4 + i], sampling=GREEDY, max_tokens=12) for i in range(5)]
    scraper = scrape(1, messages, small)
    preemptions = scraper.sample("ollampi_preemptions_total")
    assert preemptions > 0
    assert scraper.sample("ollampi_prefix_cache_lookups_total") == 5 + preemptions
    assert scraper.sample("ollampi_prompt_tokens_total") == sum(range(4, 9))
    assert scraper.sample("ollampi_generated_tokens_total") == 60


@pytest.mark.parametrize(("reason", "counted"), [("cancel", "cancel"), ("stop", "stop"), ("nonsense", "cancel")])
def test_cancels_and_a_scrape_while_draining(folder: Path, reason: str, counted: str) -> None:
    class Drainer(Scraper):
        """Begins to drain at the second token, scrapes at the third and cancels at the fourth."""

        comm: Any = None

        def post(self, event: Event) -> None:
            super().post(event)
            count = len(self.tokens(1))
            if event["kind"] == "tokens" and count == 2:
                self.comm.notify(DRAIN)
            elif event["kind"] == "tokens" and count == 4:
                self.messages.put({"op": "metrics", "id": 5})
                self.messages.put({"op": "metrics", "id": 6})  # at once after the other
            elif event["id"] == 6:
                self.messages.put({"op": "cancel", "id": 1, "reason": reason})
                self.messages.put({"op": "metrics", "id": -1})

    client = Drainer([generate(1, folder, PROMPT, sampling=GREEDY)])

    def work(comm: Communicator) -> None:
        if comm.rank == 0:
            client.comm = comm
        run_engine(comm, [], ONE_BY_ONE, client if comm.rank == 0 else None)

    run_threads(2, work)
    running = [value for name, _, value in client.last(5)["samples"] if name == "ollampi_requests_running"]
    assert running == [1]
    assert client.last(1)["reason"] == counted
    assert client.sample("ollampi_requests_total", outcome=counted) == 1
    assert client.sample("ollampi_cache_blocks_used") == 0


def test_histograms_include_their_bounds() -> None:
    histogram = Histogram((1.0, 2.0))
    for value in (0.0, 1.0, 1.5, 2.0, 2.5):
        histogram.observe(value)
    histogram.observe(3.0, 2)
    assert histogram.wire() == {"bounds": [1.0, 2.0], "counts": [2, 2, 3], "sum": 13.0}


def test_tokens_that_come_together_share_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter((11.0, 12.0))
    monkeypatch.setattr(metrics.time, "monotonic", lambda: next(clock))
    counts = ModelCounts()
    meter = RequestMeter(counts, prompt_tokens=7, arrived=8.0, replica=counts.of_replica([0]))
    for generated in (0, 1, 1, 5):
        meter.advance(generated)
    meter.end("stop")
    assert (counts.first_token.sum, sum(counts.first_token.counts)) == (3.0, 1)
    assert (counts.inter_token.sum, sum(counts.inter_token.counts)) == (1.0, 4)
    assert (counts.prompt_tokens, counts.generated_tokens, counts.outcomes["stop"]) == (7, 5, 1)


def test_drafts_account_for_the_tokens_of_all_steps(folder: Path) -> None:
    """A step with one answer takes its last token and the drafts, and brings one token and the accepted drafts."""
    settings = EngineSettings(cache_tokens=256, block_size=4, max_step_tokens=64, max_drafts=8)
    messages = [generate(1, folder, PROMPT, sampling=GREEDY, max_tokens=40)]
    scraper = Scraper(messages)
    run_threads(2, lambda c: run_engine(c, messages, settings, scraper if c.rank == 0 else None, (folder, folder)))
    main = {"model": "test:latest", "rank": "1"}
    decodes = scraper.sample("ollampi_exchange_calls_total", kind="gather", **main) - 1
    proposed = scraper.sample("ollampi_draft_tokens_proposed_total")
    accepted = scraper.sample("ollampi_draft_tokens_accepted_total")
    assert scraper.sample("ollampi_generated_tokens_total") == 40 == 1 + decodes + accepted
    assert scraper.sample("ollampi_step_tokens_total", **main) == 17 + decodes + proposed
    assert scraper.sample("ollampi_step_tokens_total", model="draft:latest", rank="1") >= 17
    assert sum(scraper.sample("ollampi_inter_token_seconds")["counts"]) == 39


def test_drafts_are_counted() -> None:
    counts = ModelCounts()
    counts.count_drafts(8, 5)
    counts.count_drafts(4, 0)
    found = {name: value for name, _, value in counts.samples("m")}
    assert found["ollampi_draft_tokens_proposed_total"] == 12
    assert found["ollampi_draft_tokens_accepted_total"] == 5


def test_a_grammar_that_cannot_be_used_is_a_refusal_and_no_outcome(tmp_path: Path) -> None:
    folder = write_speaker(tmp_path / "m")
    messages = [
        generate(i, folder, PROMPT, grammar=Grammar("regex", text), max_tokens=2, stop_tokens=[END])
        for i, text in enumerate(["(((", "[a-z]{9}", "[^\\s\\S]"])
    ]
    client = Scraper(messages)
    run_threads(1, lambda c: run_engine(c, messages, ONE_BY_ONE, client))
    assert client.sample("ollampi_requests_refused_total", code="request") == 2
    outcomes = {outcome: client.sample("ollampi_requests_total", outcome=outcome) for outcome in ("error", "length")}
    assert outcomes == {"error": 0, "length": 1}
    assert client.sample("ollampi_prompt_tokens_total") == len(PROMPT)
