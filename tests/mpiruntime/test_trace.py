"""The trace that rank 0 writes holds every rank's steps, nested and on one clock."""

from __future__ import annotations

import json
import socket
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.checkpoints import PROMPT, write_checkpoint
from support.worlds import generate, run_engine

from ollampi.mpiruntime import trace as trace_module
from ollampi.mpiruntime.communicator import Communicator
from ollampi.mpiruntime.engine_settings import EngineSettings
from ollampi.mpiruntime.errors import ConfigError
from ollampi.mpiruntime.request import Sampling
from ollampi.mpiruntime.thread_world import run_threads
from ollampi.mpiruntime.trace import KEPT_EXCHANGES, KEPT_STEPS, Trace, check_path, clock_ahead
from ollampi.mpiruntime.world import survey

SETTINGS = EngineSettings(cache_tokens=128, block_size=4, max_step_tokens=16, max_drafts=0)
LAYERS, STEPS = 2, 9  # of the random checkpoints; 17 prompt tokens in two pieces, then 7 single ones
PARTS = ["plan", "draft", "send", "forward", "sample", "deliver"]
FORWARD = "forward and exchange"
Event = dict[str, Any]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("model") / "m")


def traced(size: int, folder: Path, path: Path) -> tuple[list[Event], list[str]]:
    """Return the events of a known workload and what was announced."""
    messages = [generate(1, folder, PROMPT, sampling=Sampling(temperature=0.0), max_tokens=8)]
    lines: list[str] = []
    run_threads(size, lambda comm: run_engine(comm, messages, SETTINGS, trace=path, announce=lines.append))
    return json.loads(path.read_text())["traceEvents"] if path.is_file() else [], lines


def slices(events: list[Event], rank: int, lane: str) -> list[Event]:
    """Return the slices of one lane of a rank, in order of time, the outer ones first."""
    pids = {e["pid"] for e in events if e["name"] == "process_name" and e["args"]["name"].startswith(f"rank {rank} (")}
    tids = {e["tid"] for e in events if e["name"] == "thread_name" and e["pid"] in pids and e["args"]["name"] == lane}
    found = [e for e in events if e["ph"] == "X" and e["pid"] in pids and e["tid"] in tids]
    return sorted(found, key=lambda e: (e["ts"], -e["dur"]))


def children(events: list[Event], outer: str) -> list[tuple[Event, list[str]]]:
    """Return the outer slices with the names of those within; raise AssertionError unless each lies in one of them."""
    found: list[tuple[Event, list[str]]] = []
    end_ns = 0
    for event in events:
        if event["name"] == outer:
            found.append((event, []))
            end_ns = round((event["ts"] + event["dur"]) * 1000)
        else:
            assert round((event["ts"] + event["dur"]) * 1000) <= end_ns, event
            found[-1][1].append(event["name"])
    return found


@pytest.mark.parametrize("size", [1, 2, 3])
def test_every_rank_and_every_step_is_there(folder: Path, tmp_path: Path, size: int) -> None:
    events, lines = traced(size, folder, tmp_path / "trace.json")
    assert lines[-1].startswith(f"the trace of {size} ranks is in {tmp_path}/trace.json; ")
    hosts = [e["args"]["name"] for e in events if e["name"] == "process_name"]
    assert hosts == [f"rank {rank} ({socket.gethostname()})" for rank in range(size)]
    assert sorted({e["pid"] for e in events}) == list(range(1, size + 1))  # 0 is special to Perfetto
    lanes = [e for e in events if e["name"] == "thread_name"]
    assert len({e["tid"] for e in lanes} - {e["pid"] for e in events}) == len(lanes) == size + 1
    assert min(e["ts"] for e in events if e["ph"] != "M") >= 0
    for rank in range(size):
        forwards = children(slices(events, rank, FORWARD), "forward")
        assert [len(inner) for _, inner in forwards] == [1 + 2 * LAYERS] + [2 + 2 * LAYERS] * (STEPS - 1)
        assert [inner[-1] for _, inner in forwards] == ["all_reduce"] + ["gather"] * (STEPS - 1)
        assert [outer["args"]["tokens"] for outer, _ in forwards] == [16] + [1] * (STEPS - 1)
        assert all(0 < outer["args"]["exchange_us"] <= outer["dur"] for outer, _ in forwards)
    assert [inner for _, inner in children(slices(events, 0, "steps"), "step")] == [PARTS] * STEPS
    assert all(not slices(events, rank, "steps") for rank in range(1, size))
    assert list(tmp_path.iterdir()) == [tmp_path / "trace.json"]


def test_forward_passes_of_all_ranks_lie_in_the_time_of_their_step(folder: Path, tmp_path: Path) -> None:
    events, _ = traced(3, folder, tmp_path / "trace.json")
    steps = [e for e in slices(events, 0, "steps") if e["name"] == "step"]
    for rank in range(3):
        forwards = [e for e in slices(events, rank, FORWARD) if e["name"] == "forward"]
        assert len(forwards) == len(steps)
        for step, forward in zip(steps, forwards, strict=True):
            assert step["ts"] < forward["ts"] < step["ts"] + step["dur"]


def test_counters(folder: Path, tmp_path: Path) -> None:
    events, _ = traced(2, folder, tmp_path / "trace.json")
    counters = sorted((e for e in events if e["ph"] == "C"), key=lambda e: e["ts"])
    tokens = [e["args"]["tokens"] for e in counters if e["name"] == "test:latest tokens in the step"]
    assert tokens == [16, 0] + [1, 0] * (STEPS - 1)
    sequences = [e["args"] for e in counters if e["name"] == "test:latest sequences"]
    assert sequences == [{"running": 1, "waiting": 0}] * (STEPS - 1) + [{"running": 0, "waiting": 0}]


def test_without_a_path_nothing_is_written_or_announced(folder: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    messages = [generate(1, folder, PROMPT, max_tokens=2)]
    run_threads(2, lambda comm: run_engine(comm, messages, SETTINGS, announce=lines.append))
    assert [line for line in lines if "trace" in line] == []


def test_a_file_that_cannot_be_written_is_one_line(folder: Path, tmp_path: Path) -> None:
    _, lines = traced(2, folder, tmp_path / "gone" / "trace.json")
    path = tmp_path / "gone" / "trace.json"
    assert lines[-1] == (
        f"the trace could not be written to {path}: No such file or directory; give another path with trace=…"
    )
    assert list(tmp_path.iterdir()) == []


def test_an_earlier_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    path.write_text("x" * 10_000)
    assert Trace(path).write([b'{"a":1}', b'{"b":2}']).startswith("the trace of 2 ranks")
    assert json.loads(path.read_text())["traceEvents"] == [{"a": 1}, {"b": 2}]


def test_only_the_latest_is_kept() -> None:
    trace = Trace(Path("trace.json"))
    for i in range(KEPT_EXCHANGES + 5):
        trace.exchange("all_reduce", i, i + 0.5, 4)
        trace.forward('a "quoted" name', i, i + 0.5, 1, 0.1)
        trace.step("m", [("plan", i, i + 0.5)], 1, 0)
    events = [json.loads(event) for event in trace.events(0, "host", 0.0)]
    exchanges = [e for e in events if e["name"] == "all_reduce"]
    assert (len(exchanges), exchanges[0]["ts"], exchanges[0]["dur"]) == (KEPT_EXCHANGES, 5e6, 5e5)
    for name in ("forward", "step", "plan"):
        assert len([e for e in events if e["name"] == name]) == KEPT_STEPS
    assert {e["args"]["model"] for e in events if e["name"] == "forward"} == {'a "quoted" name'}


def test_paths_are_checked(tmp_path: Path) -> None:
    (tmp_path / "there").touch()
    check_path(tmp_path / "there")
    check_path(tmp_path / "not yet")
    for bad in (tmp_path, tmp_path / "no" / "folder", tmp_path / "there" / "x", Path("/dev/null")):
        with pytest.raises(ConfigError, match="it must be a file, there or not yet, in a folder that can be written"):
            check_path(bad)


def test_clocks_of_other_hosts_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    ahead_s = [0.0, 0.0, 1000.0, -50.0]
    plain, skew = trace_module.time.perf_counter, threading.local()
    monkeypatch.setattr(trace_module.time, "perf_counter", lambda: plain() + getattr(skew, "s", 0.0))

    def work(comm: Communicator) -> tuple[float, float]:
        skew.s = ahead_s[comm.rank]
        facts = survey(comm)
        apart = [replace(fact, host="here" if fact.rank < 2 else f"host {fact.rank}") for fact in facts]
        return clock_ahead(comm, facts), clock_ahead(comm, apart)

    for rank, (same_host, other_host) in enumerate(run_threads(4, work)):
        assert same_host == 0.0
        assert other_host == pytest.approx(ahead_s[rank], abs=1.0)
        assert rank > 1 or other_host == 0.0
