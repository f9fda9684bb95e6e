"""The job as nodes and placements, and what the engine does with models and itself when it is told."""

from __future__ import annotations

import secrets
import socket
import threading
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from support.checkpoints import PROMPT, write_checkpoint
from support.worlds import Recorder, Scraper, generate, lead, loaded, run_engine

from ollampi.mpiruntime import wire
from ollampi.mpiruntime.cluster import Cluster, Wish
from ollampi.mpiruntime.cluster_view import ClusterView, node_names, placement_of
from ollampi.mpiruntime.communicator import Single
from ollampi.mpiruntime.engine_settings import EngineSettings
from ollampi.mpiruntime.errors import AbsentError, ConflictError, MemoryShortError, ModelError, code_of
from ollampi.mpiruntime.hosted import Models
from ollampi.mpiruntime.inbox import Event, SocketInbox
from ollampi.mpiruntime.network_figures import measure_network
from ollampi.mpiruntime.request import ModelRef, Sampling
from ollampi.mpiruntime.runner import Runner
from ollampi.mpiruntime.thread_world import run_threads
from ollampi.mpiruntime.world import RankFacts, free_memory, survey, total_memory

SETTINGS = EngineSettings(cache_tokens=128, context_length=64, block_size=4, max_step_tokens=16)
SIZES = (1, 2, 3)
REFUSED = "ollampi_requests_refused_total"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("model") / "m")


def view_of(runner: Runner, models: Models, environ: dict[str, str] | None = None) -> ClusterView:
    names = node_names([fact.host for fact in runner.facts])
    return ClusterView(runner.facts, models, names, 11434, environ or {}, runner.network)


@pytest.mark.parametrize("size", SIZES)
def test_ranks_are_nodes_and_hold_shards(folder: Path, size: int) -> None:
    def look(runner: Runner) -> Cluster:
        models = Models(runner, SETTINGS)
        hosted = loaded(models, ModelRef("test:latest", str(folder)))
        found = view_of(runner, models).cluster()
        (placed,) = models.placed()
        (replica,) = placement_of(placed).replicas
        config = hosted.config
        for parts, count in ((replica.heads, config.num_heads), (replica.columns, config.mlp_width)):
            assert [place for part in parts for place in range(*part)] == list(range(count))  # they tile it
        assert replica.bytes == [report.held_bytes for report in hosted.reports]
        return found

    found = run_threads(size, lambda comm: lead(comm, look))[0]
    assert found is not None
    assert (found.world, found.discovery_method, found.leaving_s) == (size, "mpi", None)
    assert [node.id for node in found.nodes] == [f"node-{rank}" for rank in range(size)]
    assert [node.role for node in found.nodes] == ["mixed", *["worker"] * (size - 1)]
    assert [node.models for node in found.nodes] == [[f"test:latest:shard-{place}"] for place in range(1, size + 1)]
    (model,) = found.models
    assert (model.shards, model.ranks, model.state) == (size, list(range(size)), "ready")
    assert Cluster.from_wire(asdict(found)) == found


def test_what_is_known_of_health_counts(folder: Path) -> None:
    runner = Runner(Single(), survey(Single()))
    view = view_of(runner, Models(runner, SETTINGS), {"SLURM_JOB_ID": "7"})
    view.health = lambda: {0: {"status": "suspect", "memory_available": 5, "cpu_percent": 9.0, "memory_total": None}}
    view.leaving_s, view.refused = (lambda: 2.5), (lambda: 4)
    found = view.cluster()
    (node,) = found.nodes
    assert (node.status, node.memory_available, node.health["cpu_percent"]) == ("suspect", 5, 9.0)
    assert node.memory_total == total_memory() >= free_memory()
    assert (found.discovery_method, found.leaving_s, found.traffic.refused) == ("slurm", 2.5, 4)


def test_names_of_nodes() -> None:
    assert node_names(["a", "b", "a"]) == ["a-0", "b", "a-2"]
    assert node_names(["a", "a"], ["first", None]) == ["first", "a-1"]
    assert node_names(["a", "b"], ["same", "same"]) == ["same-0", "same-1"]


def test_a_model_is_loading_while_it_is_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runner = Runner(Single(), survey(Single()))
    models = Models(runner, SETTINGS)
    view, seen = view_of(runner, models), list[Cluster]()
    monkeypatch.setattr(runner, "progress", lambda *_: seen.append(view.cluster()))
    loaded(models, ModelRef("test:latest", str(folder)))
    assert {(m.name, m.state) for cluster in seen for m in cluster.models} == {("test:latest", "loading")}
    assert [m.state for m in view.cluster().models] == ["ready"]
    with pytest.raises(ModelError):
        loaded(models, ModelRef("gone:latest", str(folder / "gone")))
    assert [m.name for m in view.cluster().models] == ["test:latest"]


def test_too_little_memory_has_its_own_error(folder: Path) -> None:
    runner = Runner(Single(), survey(Single()))
    huge = EngineSettings(cache_tokens=2**28, block_size=2**10)
    runner.place.free_bytes = lambda: 1 << 20  # type: ignore[method-assign]
    with pytest.raises(MemoryShortError, match=r"^model test:latest: .* are free") as caught:
        Models(runner, huge).get(ModelRef("test:latest", str(folder)))
    assert code_of(caught.value) == "memory"
    assert [code_of(AbsentError("")), code_of(ConflictError(""))] == ["absent", "conflict"]


@pytest.mark.parametrize("size", SIZES)
def test_the_network_is_measured_on_all_ranks_alike(size: int) -> None:
    hosts = ["a", "b", "b"]

    def work(comm: Any) -> Any:
        facts = [RankFacts(rank, hosts[rank], 0, 1, [0], 1, 1, 0) for rank in range(size)]
        return measure_network(comm, facts, 10.0)

    found = run_threads(size, work)
    if size == 1:
        assert found == [None]
        return
    assert [(pace.rank, pace.host) for pace in found[0].links] == [(1, "b")]
    assert all(pace.round_trip_s > 0 and pace.bytes_per_s > 0 for pace in found[0].links)
    assert len({tuple(network.all_reduce) for network in found}) == 1


def test_ranks_of_one_host_are_measured_by_one_link() -> None:
    def work(comm: Any) -> Any:
        return measure_network(comm, [RankFacts(rank, "a", rank, 3, [0], 1, 1, 0) for rank in range(3)], 10.0)

    assert [pace.rank for pace in run_threads(3, work)[0].links] == [1]


class Told(Recorder):
    """A client whose requests end with placements and farewells too."""

    def post(self, event: Event) -> None:
        super().post(event)
        if event["kind"] in ("placed", "farewell"):
            self.open.discard(event["id"])


def place(number: int, folder: Path, name: str = "test:latest", **wish: Any) -> dict[str, Any]:
    return {"op": "place", "id": number, "model": {"name": name, "path": str(folder)}, **asdict(Wish(**wish))}


def unload(number: int, folder: Path) -> dict[str, Any]:
    return {"op": "unload idle", "id": number, "model": {"name": "test:latest", "path": str(folder)}}


def answers(size: int, messages: list[dict[str, Any]]) -> Told:
    recorder = run_threads(size, lambda comm: run_engine(comm, messages, SETTINGS, Told(messages)))[0]
    assert isinstance(recorder, Told)
    return recorder


@pytest.mark.parametrize("size", SIZES)
def test_place_and_unload(folder: Path, size: int) -> None:
    told = answers(size, [place(0, folder, shards=size), unload(1, folder), unload(2, folder), place(3, folder)])
    placement = told.last(0)["placement"]
    assert (placement["name"], placement["shards"]) == ("test:latest", size)
    assert placement["replicas"][0]["ranks"] == list(range(size))
    progress = [event for event in told.log if event["kind"] == "progress"]
    assert all(0 <= event["completed"] <= event["total"] for event in progress)
    assert {event["id"] for event in progress} <= {0, 3}
    assert [told.last(1)["reason"], told.last(2)["code"]] == ["unload", "absent"]
    assert told.last(3)["kind"] == "placed"


def test_a_command_that_is_refused_is_no_request(folder: Path) -> None:
    """What is counted as refused wanted a model's work; /api/v1/proxy/metrics shows the sum as failed requests."""
    load = place(1, folder / "nowhere")
    messages = [unload(0, folder), load]
    scraper = Scraper(messages)
    run_threads(1, lambda comm: run_engine(comm, messages, SETTINGS, scraper))
    assert [scraper.last(0)["code"], scraper.last(1)["code"]] == ["absent", "model"]
    refused = {labels["code"]: n for name, labels, n in scraper.last(-1)["samples"] if name == REFUSED}
    assert {code: count for code, count in refused.items() if count} == {"model": 1}


def test_a_placement_that_cannot_be_had_is_refused(folder: Path) -> None:
    told = answers(2, [place(0, folder / "nowhere"), place(1, folder)])
    assert (told.last(0)["code"], told.last(1)["kind"]) == ("model", "placed")


def test_a_model_at_work_stays(folder: Path) -> None:
    messages = [generate(0, folder, PROMPT, sampling=Sampling(temperature=0.0), max_tokens=5), unload(1, folder)]
    told = answers(1, messages)
    assert (told.last(1)["code"], told.last(0)["reason"]) == ("conflict", "length")
    assert "busy with 1 request" in told.last(1)["message"]


@pytest.mark.parametrize(("graceful", "unfinished"), [(True, 0), (False, 1)])
def test_leaving(folder: Path, graceful: bool, unfinished: int) -> None:
    """The engine itself ends the loop; nobody sends it a note."""
    work = generate(0, folder, PROMPT, sampling=Sampling(temperature=0.0), max_tokens=8)
    behind = [
        work,
        {"op": "leave", "id": 1, "graceful": graceful, "timeout_s": 60.0},
        {"op": "leave", "id": 2, "graceful": True, "timeout_s": 60.0},
        generate(3, folder, PROMPT, max_tokens=1),
    ]
    messages = [place(9, folder), *({**message, "behind": [9]} for message in behind)]
    told = answers(2, messages)
    assert told.last(1) == {"id": 1, "kind": "farewell", "unfinished": unfinished}
    assert told.last(0).get("code") == (None if graceful else "shutdown")
    if graceful:
        assert (told.last(2)["code"], told.last(3)["code"]) == ("conflict", "shutdown")


def test_questions_about_the_job_wait_for_no_loop() -> None:
    """Nobody takes messages out of this inbox, and the question is answered."""
    inbox = SocketInbox(f"unix:@ollampi-test-{secrets.token_hex(8)}")
    threads: list[str] = []

    def answer(client: Any, message: wire.Message) -> None:
        threads.append(threading.current_thread().name)
        if message["id"] == 1:
            raise ValueError("nothing is known")
        client.post({"id": message["id"], "kind": "cluster"})

    inbox.aside["cluster"] = answer
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.connect(wire.unix_address(inbox.address))
            for number in range(3):
                wire.send(connection, {"op": "cluster", "id": number})
            events: list[Event] = []
            while len(events) < 3:
                events += wire.receive(connection)["events"]
    finally:
        inbox.close()
    assert [event["kind"] for event in events] == ["cluster", "error", "cluster"]
    assert events[1]["message"] == "nothing is known"
    assert threading.current_thread().name not in threads
