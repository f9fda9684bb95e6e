"""A rank that is killed, and a node, end no job: the server answers again, on what is left."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
from support.servers import wait_until
from support.slurm_jobs import Job, submitted
from support.slurmlab import Slurm, has_pmix

from ollampi.launcher.endpoint import Endpoint
from ollampi.launcher.slurm_site import VARIABLE

AGAIN_S = 120.0


def answers_again(job: Job, before: Endpoint) -> Endpoint:
    """Return the endpoint once it answers again; no connection is refused meanwhile."""
    body = {"model": before.model, "prompt": "import", "raw": True, "stream": False, "options": {"num_predict": 4}}
    while job.endpoint() == before and job.state == "RUNNING":
        with job.ask(before, body) as response:
            assert response.status in (200, 500, 503)
            assert (response.status == 503) is ("Retry-After" in response.headers)
            response.read()
        time.sleep(0.1)
    found = job.served(after=before)
    wait_until(lambda: job.answers(found), AGAIN_S, f"an answer:\n{job.log}")
    return found


@pytest.mark.parametrize("way", ["pmix", "mpirun"])
def test_it_answers_again_after_a_rank_and_after_a_node_was_killed(slurm: Slurm, tmp_path: Path, way: str) -> None:
    if way == "pmix" and not has_pmix():
        pytest.skip("Slurm's plugin for PMIx does not find libpmix.so, which libpmix-dev brings")
    words = ["--nodes=2", "--ntasks-per-node=2", "--nodelist=n1,n2", "model=demo"]
    with submitted(slurm, tmp_path, *words, environ={VARIABLE: way}) as job:
        first = job.served()
        assert job.answers(first)
        os.kill(job.rank(3), signal.SIGKILL)
        second = answers_again(job, first)
        assert (second.ranks, second.url, second.token) == (4, first.url, first.token)
        slurm.kill_node("n2")
        third = answers_again(job, second)
        assert (third.ranks, third.url, third.token) == (2, first.url, first.token)
        assert "n2 does not answer; going on without" in job.log
        assert job.state == "RUNNING"
    slurm.run("scontrol", "update", "nodename=n2", "state=down", "reason=killed")
    slurm.start_node("n2")
    slurm.wait_for_nodes()
