"""A rank of a server is stopped while it answers: the others name it, the client learns, and the job ends."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import time
from contextlib import closing
from pathlib import Path

import pytest
from support.servers import alive, endless_model, server, wait_until

ENDED_S = 60.0
TOLD = re.compile(r"^ollampi: rank (\d+): (rank .*) has not come to (\S+) for 1.5 s: .*; ending the job$", re.M)


@pytest.mark.parametrize(
    ("size", "rank", "link"), [(2, 0, "mpi"), (2, 1, "shared"), (3, 1, "mpi"), (3, 0, "shared"), (4, 3, "auto")]
)
def test_the_others_name_a_rank_that_is_stopped_and_the_job_ends(
    tmp_path: Path, size: int, rank: int, link: str
) -> None:
    settings = [f"model={endless_model(tmp_path)}", f"exchange.link={link}", "exchange.timeout_s=1.5"]
    with (
        server(size, tmp_path, *settings, "engine.max_drafts=0") as job,
        closing(http.client.HTTPConnection("127.0.0.1", job.port, timeout=ENDED_S)) as connection,
    ):
        body = {"model": "endless", "prompt": "x", "raw": True, "options": {"num_predict": 100_000}}
        connection.request("POST", "/api/generate", json.dumps(body))
        stream = connection.getresponse()
        assert "response" in json.loads(stream.readline())
        everyone = job.processes()
        os.kill(job.ranks()[rank], signal.SIGSTOP)
        assert job.process.wait(ENDED_S) != 0
        wait_until(lambda: not any(alive(pid) for pid in everyone), ENDED_S, "all processes to end")
        if rank:  # the HTTP process dies with rank 0
            text = json.loads(stream.read().splitlines()[-1])["error"]
            assert text.startswith(f"the server is ending, since rank {rank} (host {os.uname().nodename}) has not come")
            assert text.endswith("; it must be started again")
        stream.close()
    told = TOLD.findall(job.log.read_text())
    assert sorted(int(who) for who, _, _ in told) == sorted(set(range(size)) - {rank})
    assert {missing for _, missing, _ in told} == {f"rank {rank} (host {os.uname().nodename})"}
    assert {what for _, _, what in told} <= {"all_reduce", "gather", "messages", "share_rows"}


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_is_stopped_while_there_is_nothing_to_do_is_named_too(tmp_path: Path, rank: int) -> None:
    with server(3, tmp_path, "exchange.timeout_s=1.5") as job:
        everyone = job.processes()
        os.kill(job.ranks()[rank], signal.SIGSTOP)
        assert job.process.wait(ENDED_S) != 0
        wait_until(lambda: not any(alive(pid) for pid in everyone), ENDED_S, "all processes to end")
    told = TOLD.findall(job.log.read_text())
    assert {missing for _, missing, _ in told} == {f"rank {rank} (host {os.uname().nodename})"}


def test_a_server_that_has_nothing_to_do_for_long_goes_on(tmp_path: Path) -> None:
    with server(2, tmp_path, "exchange.timeout_s=0.5") as job:
        before = job.generate("import", 5)
        time.sleep(2.5)
        assert job.generate("import", 5) == before
