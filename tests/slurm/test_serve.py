"""A server that is submitted with slurm/serve.sh answers, drains at USR1, comes back when queued again, and ends."""

from __future__ import annotations

import json
import socket
import threading
from pathlib import Path

from support.servers import endless_model, free_port, wait_until
from support.slurm_jobs import Job, submitted
from support.slurmlab import Slurm

from ollampi.launcher.endpoint import Endpoint
from ollampi.launcher.slurm_job import REQUEUE

TWO_BY_TWO = ("--nodes=2", "--ntasks-per-node=2")
STREAMS, ENDED_S = 8, 120.0


def test_it_answers_and_drains_while_streams_run(slurm: Slurm, tmp_path: Path) -> None:
    model = endless_model(tmp_path)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", free_port()))
        taken.listen(1)
        wanted = taken.getsockname()[1]
        with submitted(slurm, tmp_path, *TWO_BY_TWO, f"model={model}", f"server.port={wanted}") as job:
            found = job.served()
            assert found.port != wanted
            assert (found.ranks, found.model, found.job_id) == (4, "endless", str(job.number))
            assert (job.endpoints / f"{job.number}.json").stat().st_mode & 0o777 == 0o600
            assert job.answers(found)
            with job.ask(found, {"model": "endless"}, key="wrong") as refused:
                assert (refused.status, found.token in refused.read().decode()) == (401, False)
            assert {path.name for path in Path(found.logs).iterdir()} >= {
                "cluster_coordinator.log",
                *(f"cluster_worker-{rank}.log" for rank in (1, 2, 3)),
                "api_server.log",
            }
            assert f"ssh -N -L 11434:{found.host}:{found.port}" in job.log
            assert f"{found.url}/api/generate -d" in job.log
            assert found.token not in job.log
            lines: list[list[bytes]] = [[] for _ in range(STREAMS)]
            threads = [threading.Thread(target=_stream, args=(job, found, each)) for each in lines]
            for thread in threads:
                thread.start()
            wait_until(lambda: all(lines), ENDED_S, "all streams to begin")
            slurm.run("scancel", "--batch", "--signal=USR1", str(job.number))  # as Slurm does before the time limit
            for thread in threads:
                thread.join(ENDED_S)
            ends = [json.loads(each[-1]) for each in lines]
            assert [(end["done"], end["done_reason"], end["eval_count"]) for end in ends] == [(True, "length", 60)] * 8
            ended = slurm.wait(job.number)
            assert (ended["JobState"], ended["ExitCode"]) == ("COMPLETED", "0:0")
            assert job.endpoint() is None


def _stream(job: Job, found: Endpoint, lines: list[bytes]) -> None:
    """Take the lines of an answer as they come."""
    body = {"model": "endless", "prompt": "import", "raw": True, "options": {"temperature": 0, "num_predict": 60}}
    with job.ask(found, body) as response:
        for line in response:
            lines.append(line)


def test_it_queues_itself_again_keeps_its_key_and_ends_when_cancelled(slurm: Slurm, tmp_path: Path) -> None:
    with submitted(slurm, tmp_path, "--ntasks=1", "model=demo", environ={REQUEUE: "1"}) as job:
        first = job.served()
        assert job.answers(first)
        slurm.run("scancel", "--batch", "--signal=USR1", str(job.number))
        wait_until(lambda: job.endpoint() is None, ENDED_S, "the endpoint file to go")
        second = job.served()
        assert second.token == first.token
        assert job.answers(second)
        assert slurm.job(job.number)["Restarts"] == "1"
        slurm.run("scancel", str(job.number))
        assert slurm.wait(job.number)["JobState"] == "CANCELLED"
        wait_until(lambda: job.endpoint() is None, ENDED_S, "the endpoint file to go")
        wait_until(lambda: not job.processes(), ENDED_S, f"{job.processes()} to end")
