"""Test how rank 0 and the HTTP process find each other through the process that keeps the port."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
from support.coordinators import FakeCoordinator
from support.servers import wait_until

from ollampi.api.engine_client import EngineError
from ollampi.api.errors import answer_for, comes_back
from ollampi.api.socket_engine import SocketEngine
from ollampi.api.whereabouts import Kept
from ollampi.launcher.keeper_link import KEEPER, SECRET, KeeperLink, is_kept
from ollampi.launcher.meeting import Meeting
from ollampi.mpiruntime.errors import ConfigError
from ollampi.mpiruntime.request import GenerateRequest, ModelRef, Sampling

BOUND = "127.0.0.1", 11434
REQUEST = GenerateRequest(ModelRef("demo:latest", "/models/demo"), [1, 2], Sampling(seed=5), [7], max_tokens=3)


@pytest.fixture
def news() -> threading.Event:
    return threading.Event()


@pytest.fixture
def meeting(news: threading.Event) -> Iterator[Meeting]:
    with Meeting(BOUND, news.set) as made:
        yield made


@pytest.fixture
def engine(meeting: Meeting) -> Iterator[SocketEngine]:
    made = SocketEngine(Kept(meeting.address))
    yield made
    made.close()


@pytest.fixture
def coordinators() -> Iterator[list[FakeCoordinator]]:
    made = [FakeCoordinator(), FakeCoordinator()]
    yield made
    for coordinator in made:
        coordinator.close()


def refused(engine: SocketEngine) -> tuple[str, str]:
    """Return the code and the text with which a request is refused."""
    with pytest.raises(EngineError) as caught:
        engine.loaded()
    assert answer_for(caught.value) == (503, str(caught.value))
    return caught.value.code, str(caught.value)


def test_rank_0_tells_how_far_it_is(meeting: Meeting, news: threading.Event) -> None:
    environ = meeting.expect()
    assert (is_kept(environ), is_kept({})) == (True, False)
    link = KeeperLink("unix:@a", environ)
    assert link.bound == BOUND
    assert (meeting.start.address, meeting.start.ready_at, meeting.start.left_at) == ("unix:@a", None, None)
    link.tell("ready")
    wait_until(lambda: meeting.start.ready_at is not None, 10, "the news")
    link.tell("done")
    wait_until(lambda: meeting.start.is_done, 10, "the news")
    assert news.is_set()
    link.close()
    wait_until(lambda: meeting.start.left_at is not None, 10, "rank 0 to go")
    assert meeting.start.address is None


def test_ranks_of_an_earlier_start_are_refused(meeting: Meeting) -> None:
    old = meeting.expect()
    assert old[SECRET] != meeting.expect()[SECRET]
    with pytest.raises(ConfigError, match="of an earlier start"):
        KeeperLink("unix:@a", old)
    assert meeting.start.address is None


def test_ranks_elsewhere_say_what_to_do() -> None:
    with pytest.raises(ConfigError, match=r"rank 0 runs on .* name that host first in the hostfile"):
        KeeperLink("unix:@a", {KEEPER: "unix:@ollampi-nobody-is-here", SECRET: "x"})


def test_requests_go_to_the_ranks_of_now(
    meeting: Meeting, engine: SocketEngine, coordinators: list[FakeCoordinator]
) -> None:
    assert refused(engine) == ("restarting", "the ranks are starting; try again in a few seconds")
    for coordinator in coordinators:
        coordinator.silent = True
        link = KeeperLink(coordinator.address, meeting.expect())
        assert engine.loaded() == []
        stream = engine.generate(REQUEST)
        coordinator.expect("loaded")
        coordinator.expect("generate")
        coordinator.hang_up()
        with pytest.raises(EngineError, match="the engine went away") as caught:
            next(iter(stream))
        assert caught.value.code == "restarting"
        assert engine.loaded() == []  # the connection broke, and the ranks are there
        coordinator.hang_up()
        link.close()
        wait_until(lambda: meeting.start.left_at is not None, 10, "rank 0 to go")
        assert refused(engine)[1].startswith("the ranks have ended and are being started again")
    meeting.tell("ended", "the server is ending")
    assert refused(engine) == ("ended", "the server is ending")


def test_ranks_that_say_why_they_end_come_again(
    meeting: Meeting, engine: SocketEngine, coordinators: list[FakeCoordinator]
) -> None:
    first, second = coordinators
    first.silent = True
    link = KeeperLink(first.address, meeting.expect())
    stream = engine.generate(REQUEST)
    first.expect("generate")
    first.send(0, kind="ending", message="rank 1 is missing; it is being started again")
    first.hang_up()
    with pytest.raises(EngineError, match=r"^rank 1 is missing") as caught:
        next(iter(stream))
    assert (caught.value.code, comes_back(caught.value)) == ("restarting", True)
    link.close()
    link = KeeperLink(second.address, meeting.expect())
    assert engine.loaded() == []
    link.close()


def test_ranks_that_are_gone_before_the_keeper_knows_it(meeting: Meeting, engine: SocketEngine) -> None:
    link = KeeperLink("unix:@ollampi-nobody-is-here", meeting.expect())
    assert refused(engine) == ("restarting", "the engine went away; try again in a few seconds")
    link.close()


def test_a_keeper_that_is_gone() -> None:
    engine = SocketEngine(Kept("unix:@ollampi-nobody-is-here"))
    assert refused(engine)[0] == "unavailable"
