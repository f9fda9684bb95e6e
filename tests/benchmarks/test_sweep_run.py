"""How a sweep goes on: one server for points that share it, resuming, failures, dry runs, time left."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import sweep
import sweep_run
from support.sweeps import record
from sweep_points import Load, Point, Server, Sweep
from sweep_points import read as read_words
from sweep_records import Records, Repeat
from sweep_run import Run, span_text, time_left_s, todo
from sweep_server import Running, Subject, SweepError

MODEL = cast(
    Subject,
    SimpleNamespace(
        model=SimpleNamespace(name=SimpleNamespace(short="fake"), digest="d" * 64),
        refuses=lambda point: "too few heads" if point.server.shards > 100 else "",
    ),
)
DIGEST = MODEL.model.digest
ONE = Repeat(1.0, [0.1], [0.1], 10, [1.0], [1.0], 0.1)


def read(words: list[str]) -> Sweep:
    """Return a sweep whose servers are started once."""
    return read_words(["starts=1", *words])


@dataclass
class Lab:
    """Servers that take no time; broken: how a server, or a point on one, fails."""

    broken: dict[Any, str] = field(default_factory=dict)
    ends_at: set[Point] = field(default_factory=set)  # points that take their server with them
    starts: list[Server] = field(default_factory=list)
    stops: int = 0
    measured: list[Point] = field(default_factory=list)
    interrupt_at: int = -1

    @contextmanager
    def start(self, wanted: Server) -> Iterator[Running]:
        self.starts.append(wanted)
        if wanted in self.broken:
            raise SweepError(self.broken[wanted])
        running = SimpleNamespace(server=wanted, groups=[[0]], shard_bytes=[1], start_s=1.0, usable=True)
        running.process_bytes = lambda: [2]
        try:
            yield cast(Running, running)
        finally:
            self.stops += 1

    def measure(self, running: Any, load: Load, warmups: int, repeats: int) -> list[Repeat]:
        point = Point(running.server, load)
        if len(self.measured) == self.interrupt_at:
            raise KeyboardInterrupt
        self.measured.append(point)
        if point in self.ends_at:
            running.usable = False
            raise SweepError("a request was not answered")
        if point in self.broken:
            raise SweepError(self.broken[point])
        return [ONE] * repeats


@pytest.fixture
def lab(monkeypatch: pytest.MonkeyPatch) -> Lab:
    found = Lab()
    monkeypatch.setattr(sweep_run, "measure", found.measure)
    return found


def go(asked: Sweep, lab: Lab, folder: Path) -> list[str]:
    """Run what is to do; return what was said."""
    said: list[str] = []
    records = Records(folder)
    Run(asked, MODEL, records, said.append, lab.start).all(todo(asked, DIGEST, records.read()))
    return said


def test_one_server_serves_all_loads_that_share_its_settings(tmp_path: Path, lab: Lab) -> None:
    asked = read(["shards=1,2", "quantize=q8,none", "concurrency=1,2,4", "repeats=2"])
    said = go(asked, lab, tmp_path)
    assert len(lab.starts) == lab.stops == 4
    assert lab.measured == asked.points
    known = Records(tmp_path).read()
    assert list(known) == [asked.key(point, DIGEST) for point in asked.points]
    assert all(len(found.repeats) == 2 and found.where and found.at for found in known.values())
    assert said[0].startswith("[1/12] shards=1 replicas=1")
    assert said[0].endswith("left")
    assert said[-1].startswith("[12/12]")
    assert said[-1].endswith("10.0 tokens/s, done")


def test_an_interrupted_sweep_goes_on_where_it_was(tmp_path: Path, lab: Lab) -> None:
    asked, lab.interrupt_at = read(["shards=1,2", "concurrency=1,2,4"]), 4
    with pytest.raises(KeyboardInterrupt):
        go(asked, lab, tmp_path)
    assert lab.stops == 2  # the server that ran is gone too
    assert len(Records(tmp_path).read()) == 4
    lab.interrupt_at, lab.measured = -1, []
    go(asked, lab, tmp_path)
    assert lab.measured == asked.points[4:]
    go(asked, lab, tmp_path)
    assert lab.measured == asked.points[4:]  # nothing is left
    assert len((tmp_path / "sweep.jsonl").read_text().splitlines()) == 6


def test_a_longer_sweep_measures_what_is_new_and_another_model_all(tmp_path: Path, lab: Lab) -> None:
    go(read(["shards=1,2"]), lab, tmp_path)
    known = Records(tmp_path).read()
    assert [point.server.shards for point in todo(read(["shards=4,2,1"]), DIGEST, known)] == [4]
    assert len(todo(read(["shards=1,2"]), "e" * 64, known)) == 2
    assert len(todo(read(["shards=1,2", "repeats=9"]), DIGEST, known)) == 2


def test_a_point_that_fails_is_noted_and_the_sweep_goes_on(tmp_path: Path, lab: Lab) -> None:
    asked = read(["shards=1,2,4", "concurrency=1,2"])
    lab.broken = {Server(2): "no memory", asked.points[0]: "too long"}
    said = go(asked, lab, tmp_path)
    assert [found.error for found in Records(tmp_path).read().values()] == [
        "too long",
        "",
        "no memory",
        "no memory",
        "",
        "",
    ]
    assert "failed: too long" in said[0]
    assert lab.starts == [Server(1), Server(2), Server(4)]
    lab.broken, lab.starts = {}, []
    go(asked, lab, tmp_path)
    assert lab.starts == []  # what failed is not tried again unasked
    go(read(["shards=1,2,4", "concurrency=1,2", "retry=true"]), lab, tmp_path)
    assert lab.starts == [Server(1), Server(2)]
    assert not any(found.error for found in Records(tmp_path).read().values())


def test_what_the_model_cannot_do_starts_no_server(tmp_path: Path, lab: Lab) -> None:
    go(read(["shards=101,1"]), lab, tmp_path)
    assert lab.starts == [Server(1)]
    assert [found.error for found in Records(tmp_path).read().values()] == ["too few heads", ""]


def test_a_server_that_ends_or_hangs_is_started_again_for_the_next_point(tmp_path: Path, lab: Lab) -> None:
    asked = read(["concurrency=1,2,4"])
    lab.ends_at = {asked.points[0], asked.points[2]}
    go(asked, lab, tmp_path)
    assert lab.measured == asked.points
    assert len(lab.starts) == 2
    assert [bool(found.error) for found in Records(tmp_path).read().values()] == [True, False, True]


def test_a_job_measures_the_points_that_it_is_given(tmp_path: Path, lab: Lab) -> None:
    asked = read(["shards=1,2,4"])
    key = asked.key(asked.points[1], DIGEST)
    go(read(["shards=1,2,4", f"only=[{key}]"]), lab, tmp_path)
    assert lab.measured == [asked.points[1]]


def test_the_time_left_follows_what_was_measured() -> None:
    light, heavy = Load(1, 1000, 50), Load(2, 1000, 50)  # 2 and 3 units of work in a round
    points = [Point(Server(n), load) for n in (1, 2) for load in (light, heavy)]
    assert time_left_s(points, [], rounds=6) == pytest.approx(2 * 10 + 6 * (2 + 3 + 2 + 3))
    done = [record(Server(1), light, [0.1])]  # took 2 s and 5 s to start: a unit is 1/6 s
    assert time_left_s(points[1:], done, 6, Server(1)) == pytest.approx(5 + 6 * (3 + 2 + 3) / 6)
    failed = record(Server(1), heavy, [], error="no")
    assert time_left_s(points[2:], [*done, failed], 6, Server(1)) == pytest.approx(5 + 6 * (2 + 3) / 6)
    assert [span_text(seconds) for seconds in (5, 89, 90, 3600, 9000)] == ["5 s", "89 s", "2 min", "60 min", "2.5 h"]


def test_a_dry_run_prints_points_and_an_estimate_and_starts_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], lab: Lab
) -> None:
    words = ["shards=1,2", "concurrency=1,2", "starts=1", f"folder={tmp_path}"]
    assert sweep.main([*words, "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 5
    assert all(" to do " in line and "shards=" in line for line in lines[:4])
    assert lines[4].startswith("4 points, 4 to do on 2 servers: about")
    assert "assumed" in lines[4]
    assert list(tmp_path.iterdir()) == []
    assert lab.starts == []


def test_a_dry_run_says_what_the_model_cannot_do_and_how_often_servers_start(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], lab: Lab
) -> None:
    assert sweep.main(["--dry-run", "shards=1,101", f"folder={tmp_path}"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines[:4]] == ["to", "cannot", "to", "cannot"]
    assert lines[1].endswith(": cannot cut 8 attention heads into 101 shards; use fewer")
    assert lines[2].endswith(" start=1")
    assert lines[4].startswith(
        "4 points (2 in each of 2 starts), 2 that the model cannot do, 2 to do on 2 servers: about"
    )
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_used_is_one_line_and_status_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    for words in (["shards=no"], ["model=/nowhere"], [f"folder={tmp_path}/file/x"], ["--frobnicate"]):
        assert sweep.main([f"folder={tmp_path}", *words]) == 2
        told = capsys.readouterr()
        assert told.out == ""
        assert told.err.startswith("sweep: ")
        assert told.err.count("\n") == 1, told.err
