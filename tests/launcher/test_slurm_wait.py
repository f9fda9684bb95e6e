"""Waiting for the servers of a job: files that are new, jobs that end early, a controller that is away."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from support.fake_slurm import an_endpoint

from ollampi.launcher import endpoint
from ollampi.launcher.slurm_client import Queued, SlurmError
from ollampi.launcher.slurm_wait import EndedEarlyError, LateError, stamps, wait_ready


def job(job_id: str = "100", state: str = "RUNNING", reason: str = "None") -> Queued:
    return Queued(job_id, state, "0:01", "1:00", "N/A", "n1", reason, "ollampi", "ollampi")


@dataclass
class World:
    """A clock that only sleep moves, a queue that changes with it, and what happens at some times."""

    where: Path
    queue: Callable[[float], Sequence[Queued]]
    at: dict[float, Callable[[], object]] = field(default_factory=dict)
    now: float = 0.0
    asked: int = 0
    said: list[str] = field(default_factory=list)

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        for time in [time for time in self.at if time <= self.now]:
            self.at.pop(time)()
        assert self.now < 3600

    def look(self) -> Sequence[Queued]:
        self.asked += 1
        return self.queue(self.now)

    def wait(self, *job_ids: str, timeout_s: float | None = None) -> list[str]:
        before, clock = stamps(self.where), lambda: self.now
        found = wait_ready(job_ids, self.where, before, self.look, self.said.append, timeout_s, self.sleep, clock)
        return [each.url for each in found]


def test_the_endpoint_is_there_when_the_file_is(tmp_path: Path) -> None:
    one = an_endpoint()

    def queue(now: float) -> list[Queued]:
        reason = "None" if now < 10 else "Resources" if now < 20 else "Priority"
        return [job(state="PENDING", reason=reason) if now < 30 else job()]

    world = World(tmp_path, queue, {60.0: lambda: endpoint.write(one, tmp_path)})
    assert world.wait("100") == [one.url]
    assert world.now == 60.0
    assert world.said == [
        "job 100 is PENDING (None: Slurm has not looked at it yet)",
        "job 100 is PENDING (Resources: waits until nodes are free)",
        "job 100 is PENDING (Priority: others are before it)",
        "job 100 is RUNNING",
    ]
    assert world.asked <= 21  # Slurm's controller has others to serve


def test_a_file_of_an_earlier_job_of_that_id_is_none(tmp_path: Path) -> None:
    endpoint.write(an_endpoint(url="http://old"), tmp_path)
    later = {5.0: lambda: endpoint.write(an_endpoint(url="http://new"), tmp_path)}
    assert World(tmp_path, lambda _now: [job()], later).wait("100") == ["http://new"]
    with pytest.raises(EndedEarlyError):
        World(tmp_path, lambda now: [job(state="RUNNING" if now < 5 else "FAILED")]).wait("100")


def test_all_replicas_are_waited_for_and_come_in_their_order(tmp_path: Path) -> None:
    ids = ["100_0", "100_1", "100_2"]
    ones = {job_id: an_endpoint(job_id) for job_id in ids}
    at = {
        9.0: lambda: endpoint.write(ones["100_0"], tmp_path),
        3.0: lambda: endpoint.write(ones["100_2"], tmp_path),
        6.0: lambda: endpoint.write(ones["100_1"], tmp_path),
    }
    assert World(tmp_path, lambda _now: [job(each) for each in ids], at).wait(*ids) == [ones[each].url for each in ids]


@pytest.mark.parametrize("state", ["FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "COMPLETED"])
def test_a_job_that_ends_early_is_told(tmp_path: Path, state: str) -> None:
    world = World(tmp_path, lambda now: [job("100_0"), job("100_1", "RUNNING" if now < 10 else state)])
    with pytest.raises(EndedEarlyError, match=f"job 100_1 ended before its server was ready: {state}") as raised:
        world.wait("100_0", "100_1")
    assert raised.value.job_id == "100_1"


def test_a_job_may_come_late_into_the_queue_and_be_forgotten_there(tmp_path: Path) -> None:
    one = {30.0: lambda: endpoint.write(an_endpoint(), tmp_path)}
    assert World(tmp_path, lambda now: [job()] if now > 4 else [], one).wait("100")
    world = World(tmp_path / "other", lambda now: [job()] if now < 10 else [])
    with pytest.raises(EndedEarlyError, match="it is in the queue no more"):
        world.wait("100")


def test_a_requeued_job_is_waited_for(tmp_path: Path) -> None:
    states = ["RUNNING", "REQUEUED", "PENDING", "SOMETHING_NEW", "RUNNING"]
    world = World(
        tmp_path,
        lambda now: [job(state=states[min(int(now / 10), 4)], reason="BeginTime")],
        {60.0: lambda: endpoint.write(an_endpoint(), tmp_path)},
    )
    assert world.wait("100")
    assert len(world.said) == 5


def test_a_controller_that_is_away_is_told_once(tmp_path: Path) -> None:
    def queue(now: float) -> list[Queued]:
        if 5 < now < 300:
            raise SlurmError("squeue refused: nobody is there")
        return [job()]

    world = World(tmp_path, queue, {400.0: lambda: endpoint.write(an_endpoint(), tmp_path)})
    assert world.wait("100")
    assert world.said == ["job 100 is RUNNING", "squeue refused: nobody is there; still waiting"]


def test_late_is_told_with_the_states(tmp_path: Path) -> None:
    world = World(tmp_path, lambda _now: [job("100_0"), job("100_1", "PENDING", "Priority")])
    text = r"after 20 s 2 of 2 servers are not ready: 100_0 is RUNNING, 100_1 is PENDING \(Priority: others"
    with pytest.raises(LateError, match=text):
        world.wait("100_0", "100_1", timeout_s=20)
    assert world.now == 20
