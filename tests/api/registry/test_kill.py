"""A pull that is killed at any moment leaves a store that is in order, and the next one goes on."""

from __future__ import annotations

import random

from support.kills import faults_of, has, kill_after, start_pull
from support.pulls import BIG, SMALL, Pull, bytes_of
from support.registry import Registry, digest_of

from ollampi.api.store.local import LocalStore


def test_kills_at_random_moments(registry: Registry, store: LocalStore, pulled: Pull) -> None:
    draw, name = random.Random(7), f"{registry.host}/library/m"
    for _ in range(5):
        registry.fail(digest_of(BIG), "stall", 3 << 20, times=2)  # so that it does not end before it is killed
        kill_after(start_pull(store.root, name, registry.url), draw.random() * 0.4)
        assert not faults_of(store.root)
        assert not has(store.root, name)
        registry.faults.clear()
    assert pulled()[-1] == {"status": "success"}
    assert bytes_of(store, name) == [BIG, SMALL]


def test_another_process_goes_on_where_one_was_killed(registry: Registry, store: LocalStore, pulled: Pull) -> None:
    registry.fail(digest_of(BIG), "drop", 5 << 20, times=3)  # more than a piece: no fault
    registry.fail(digest_of(BIG), "stall", 0, times=4)
    process = start_pull(store.root, f"{registry.host}/library/m", registry.url, num_streams=1)
    assert process.stdout is not None
    for line in process.stdout:
        if f"'completed': {12 << 20}" in line:
            break
    process.kill()
    process.communicate()
    registry.faults.clear()
    registry.seen.clear()
    pulled()
    assert len(registry.lines(digest_of(BIG))) == 3
    assert bytes_of(store, f"{registry.host}/library/m") == [BIG, SMALL]


def test_another_process_waits_for_the_one_that_downloads(registry: Registry, store: LocalStore) -> None:
    name = f"{registry.host}/library/m"
    processes = [start_pull(store.root, name, registry.url) for _ in range(3)]
    ends = [process.communicate()[0].splitlines()[-1] for process in processes]
    assert ends == ["{'status': 'success'}"] * 3
    assert len(registry.lines(digest_of(BIG))) == 6
    assert not faults_of(store.root)
