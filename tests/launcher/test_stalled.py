"""A load that brings nothing ends the job; one that goes on, however slowly, does not."""

from __future__ import annotations

import threading

from ollampi.launcher.stalled import LoadWatch


def test_a_load_that_brings_nothing_is_named() -> None:
    told: list[str] = []
    lost = threading.Event()

    def note(text: str) -> None:
        told.append(text)
        lost.set()

    watch = LoadWatch(0.05, note)
    with watch.watching():
        watch.tick("demo:latest", 1, 10)
        assert lost.wait(60)
    (text,) = told
    assert text.startswith("the load of demo:latest has brought nothing for 0.05 s: look whether the file system")
    assert "engine.load_timeout_s" in text


def test_a_load_that_goes_on_or_is_over_is_left_alone() -> None:
    told: list[str] = []
    watch = LoadWatch(30, told.append)
    with watch.watching():
        watch.tick("demo:latest", 1, 10)
    with watch.watching():
        pass
    assert told == []
    assert not [thread for thread in threading.enumerate() if thread.name == "load-watch"]
