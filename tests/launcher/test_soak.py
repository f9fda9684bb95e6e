"""Random requests of many clients to one rank and to several: each ends properly, and nothing is left behind."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.servers import server, wait_until
from support.soak import CONTEXT, Resources, resources, soak

CLIENTS = 12
SETTINGS = (
    f"engine.context_length={CONTEXT}",
    "engine.cache_tokens=1024",
    "engine.max_queue=4",
    "engine.max_running=6",
)


@pytest.mark.parametrize("size", [1, 3])
def test_every_request_ends_properly_and_nothing_leaks(size: int, tmp_path: Path) -> None:
    with server(size, tmp_path, *SETTINGS) as job:
        soak(job, 30, CLIENTS, seed=0)
        soak(job, 80, CLIENTS, seed=2)  # by then all is there that is started when it is first wanted
        before = settled(job)
        outcomes = soak(job, 80, CLIENTS, seed=1)
        after = settled(job)
        assert sum(outcomes.values()) == 80
        assert len(outcomes) > 6, outcomes
        assert after.descriptors <= before.descriptors
        assert after.threads <= before.threads + CLIENTS
        assert job.process.poll() is None, job.log.read_text()
        assert job.generate("import", 5)  # the idle engine has checked its blocks, and lives


def settled(job: object) -> Resources:
    """Return what a job holds once all its connections are closed."""
    seen: list[Resources] = []

    def steady() -> bool:
        seen.append(resources(job))  # type: ignore[arg-type]
        return len(seen) > 10 and len({r.descriptors for r in seen[-10:]}) == 1

    wait_until(steady, 30, "the server to settle")
    return seen[-1]
