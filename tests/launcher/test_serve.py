"""The life of a job: it starts, answers, and ends without a trace however it is ended."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from http.client import HTTPException
from pathlib import Path

import pytest
from support.checkpoints import write_checkpoint
from support.leftovers import assert_nothing_is_left, launched, open_stream, shared_memory
from support.servers import COMMAND, Server, alive, endless_model, free_port, mpirun, run_to_end, server, wait_until

from ollampi.launcher import serve
from ollampi.mpiruntime.errors import OllampiError


def refused(job: Server) -> bool:
    """Return whether the server says that it is shutting down; one that is gone would raise."""
    status, answer = job.request(
        "POST", "/api/generate", {"model": "endless", "prompt": "x", "options": {"num_predict": 1}}
    )
    return status == 503 and "shutting down" in str(answer)


def read_to_end(connection: socket.socket) -> bytes:
    received = b""
    while True:
        try:
            data = connection.recv(65536)
        except OSError:
            return received
        if not data:
            return received
        received += data


def test_greedy_text_is_the_same_for_every_world_over_http(tmp_path: Path) -> None:
    texts = {}
    for size in (0, 1, 2, 3, 4):
        with server(size, tmp_path, "dtype=float32", module=COMMAND) as job:
            texts[size] = [job.generate(prompt, 60) for prompt in ("import os\n", "The with statement", "class ")]
            log = job.log.read_text()
        assert len(re.findall(r"^ +\d+ +\S+ +[\d,-]+ +\d+ +[\d-]+ +[\d-]+ ", log, re.M)) == max(1, size)
        assert f"serving at http://127.0.0.1:{job.port}" in log
        assert f"curl http://127.0.0.1:{job.port}/api/generate" in log
    assert len(texts[1][0]) > 20
    assert all(texts[size] == texts[1] for size in texts)


def test_the_curl_line_of_the_banner_works_as_printed(tmp_path: Path) -> None:
    with server(2, tmp_path) as job:
        line = next(line for line in job.log.read_text().splitlines() if line.startswith("  curl "))
        done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=60)
    last = json.loads(done.stdout.splitlines()[-1])
    assert last["done"] is True
    assert last["eval_count"] >= 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("target", ["mpirun", "rank 0", "rank 2"])
def test_a_signal_ends_the_job_while_it_answers(tmp_path: Path, number: int, target: str) -> None:
    before = shared_memory()
    with server(3, tmp_path, f"model={endless_model(tmp_path)}") as job:
        pids = job.processes()
        assert len(job.ranks()) == 3
        with open_stream(job) as connection:
            os.kill(job.process.pid if target == "mpirun" else job.ranks()[int(target[-1])], number)
            read_to_end(connection)
        assert_nothing_is_left(job, pids, before, within_s=8)
        if target != "mpirun":  # which closes the ranks' output before they end
            assert job.log.read_text().count("ollampi: stopping; requests that end unfinished: 1") == 1


@pytest.mark.parametrize("target", ["mpirun", "rank 1", "rank 0"])
def test_usr1_drains_running_answers_finish_new_ones_are_refused(tmp_path: Path, target: str) -> None:
    before = shared_memory()
    with server(2, tmp_path, f"model={endless_model(tmp_path)}") as job:
        with open_stream(job, num_predict=600) as connection:
            pids = job.processes()
            os.kill(job.process.pid if target == "mpirun" else job.ranks()[int(target[-1])], signal.SIGUSR1)
            wait_until(lambda: refused(job), 5, "new work to be refused")
            rest = read_to_end(connection)
        last = json.loads(rest.split(b"\r\n")[-4])  # before the last chunk, which is empty
        assert (last["done_reason"], last["eval_count"]) == ("length", 600)
        assert job.process.wait(10) == 0
        said = re.findall(r"^ollampi: draining for at most 60 s; running requests: [12]$", job.log.read_text(), re.M)
        assert len(said) == 1
        assert_nothing_is_left(job, pids, before, within_s=3)


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_rank_ends_the_job(tmp_path: Path, victim: int) -> None:
    before = shared_memory()
    with server(3, tmp_path, f"model={endless_model(tmp_path)}") as job:
        pids = job.processes()
        with open_stream(job):
            os.kill(job.ranks()[victim], signal.SIGKILL)
            assert_nothing_is_left(job, pids, before, within_s=5)
        assert job.process.wait(5) != 0


def test_killing_the_http_process_ends_the_job_with_a_message(tmp_path: Path) -> None:
    before = shared_memory()
    with server(2, tmp_path) as job:
        pids = job.processes()
        front = next(p for p in pids if b"ollampi.api.front" in Path(f"/proc/{p}/cmdline").read_bytes())
        os.kill(front, signal.SIGKILL)
        assert_nothing_is_left(job, pids, before, within_s=5)
        assert job.process.wait(5) != 0
        assert "the HTTP process ended" in job.log.read_text()


_BROKEN = """
import sys
from ollampi.launcher import serve
from ollampi.mpiruntime import runner
plain = runner.Runner.step
def step(self, step):
    if self.comm.rank == {victim}:
        raise ZeroDivisionError("planted on one rank")
    return plain(self, step)
runner.Runner.step = step
serve.main()
"""


@pytest.mark.parametrize("victim", [0, 2])
def test_an_exception_on_any_rank_ends_the_job_with_its_traceback(tmp_path: Path, victim: int) -> None:
    program = tmp_path / "broken.py"
    program.write_text(_BROKEN.format(victim=victim))
    port = free_port()
    line, env = mpirun(3, [sys.executable, str(program), f"server.port={port}"])
    log = tmp_path / "log"
    with log.open("w") as out:
        process = subprocess.Popen(line, env=env, stdout=out, stderr=out)
    job = Server(process, port, log)
    wait_until(lambda: "serving at" in log.read_text(), 60, "the server")
    pids = job.processes()
    began = time.monotonic()
    with suppress(OSError, HTTPException):
        job.request("POST", "/api/generate", {"model": "demo", "prompt": "x", "stream": False})
    assert process.wait(10) != 0
    assert time.monotonic() - began < 10
    wait_until(lambda: not any(alive(p) for p in pids), 3, "all processes to end")
    text = log.read_text()
    assert f"rank {victim} failed" in text
    assert "ZeroDivisionError: planted on one rank" in text


# What is refused where the settings are read is refused in one way, whatever the setting: one goes through a job of
# each kind here, and the others are read in this process below.
@pytest.mark.parametrize(
    ("size", "override", "texts"),
    [
        (0, "nonsense", ["'nonsense' is no setting", "key=value"]),
        (2, "server.prot=1", ["unknown setting 'server.prot'", "host, port"]),
        (2, "exchange.interface=eth99", ["exchange.interface is 'eth99'", "does not have", "use one of", "lo"]),
        (2, "model=nothing", ["model 'nothing' not found", "demo:latest"]),
        (0, "model=/nowhere/at/all", ["/nowhere/at/all", "not found"]),
        (0, "model_folders=[/nowhere]", ["/nowhere", "no folder"]),
        (0, "engine.cache_tokens=200000000", ["GiB", "are free", "smaller engine.cache_tokens"]),
        (2, "engine.cache_tokens=200000000", ["GiB", "are free", "smaller engine.cache_tokens"]),
    ],
)
def test_bad_settings_are_one_message_and_end_all_ranks(size: int, override: str, texts: list[str]) -> None:
    status, output = run_to_end(size, f"server.port={free_port()}", override)
    assert status == 1, output
    for text in texts:
        assert text in output
    assert len(re.findall(r"^ollampi: ", output, re.M)) == 1, output
    assert "Traceback" not in output


@pytest.mark.parametrize(
    ("override", "texts"),
    [
        ("server.prot=1", ["unknown setting 'server.prot'", "host, port"]),
        ("sever=1", ["unknown setting 'sever'", "model, model_folders"]),
        ("server.port=abc", ["server.port", "abc"]),
        ("server.port=70000", ["server.port is 70000", "from 0 to 65535"]),
        ("dtype=int8", ["dtype is 'int8'", "auto, float32, bfloat16"]),
        ("engine.block_size=0", ["engine.block_size is 0"]),
        ("exchange.interface=eth99", ["exchange.interface is 'eth99'", "does not have", "use one of", "lo"]),
        ("nonsense", ["'nonsense' is no setting", "key=value"]),
    ],
)
def test_a_rank_refuses_bad_settings_once_all_can_agree_on_it(override: str, texts: list[str]) -> None:
    composed = serve.compose([f"server.port={free_port()}", override])
    with pytest.raises(OllampiError) as refused:
        composed.config()
    for text in texts:
        assert text in str(refused.value)


def test_a_port_in_use_is_one_message(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        status, output = run_to_end(2, f"server.port={port}")
    assert status == 1
    assert f"cannot listen on 127.0.0.1:{port}: Address already in use; give another" in output
    assert output.count("ollampi: ") == 1


def test_more_ranks_than_heads_is_one_message(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "two_heads", num_attention_heads=2, num_key_value_heads=2, vocab_size=4096)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((Path("conf/models/demo") / name).read_bytes())
    status, output = run_to_end(3, f"server.port={free_port()}", f"model={folder}")
    assert status == 1
    assert "cannot cut 2 attention heads into 3 shards; use at most 2 ranks" in output
    assert output.count("ollampi: ") == 1


def test_a_server_without_stdin_answers(tmp_path: Path) -> None:
    with launched(tmp_path, "serve 0<&-") as job:
        assert job.generate("import os\n", 4)
        job.signal(signal.SIGTERM)
        assert job.process.wait(10) == 0
