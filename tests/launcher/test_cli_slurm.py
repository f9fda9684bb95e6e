"""The commands of `ollampi slurm` beside programs of Slurm that are not real."""

from __future__ import annotations

import json
import os
import sys
from typing import Any

import pytest
from click.testing import CliRunner
from support.fake_api import Become
from support.fake_slurm import FakeSlurm, an_endpoint, row

from ollampi.launcher import endpoint, slurm_logs, slurm_submit
from ollampi.launcher.cli import main

AWAY = {"err": "slurm_load_jobs error: Unable to contact slurm controller (connect failure)\n", "status": 1}
GONE = {"err": "slurm_load_jobs error: Invalid job id specified\n", "status": 1}
CHECK_SETTINGS = slurm_submit._check_settings
PROGRAM = f"exec {sys.executable} -m ollampi slurm job"


def test_status_joins_queue_and_files(slurm: FakeSlurm) -> None:
    endpoint.write(an_endpoint("9", model="old"), slurm.endpoints)
    endpoint.write(an_endpoint("100_10"), slurm.endpoints)
    endpoint.write(an_endpoint("100_2"), slurm.endpoints)
    (slurm.endpoints / "5.json").write_text("{")
    lines = [row("100_10"), row("100_2"), row("100_3", comment="(null)", name="ollampi")]
    lines += [row("101", "PENDING", nodes="", reason="Resources", comment="ollampi:0af3")]
    lines += [row("102", comment="ollampic", name="a train")]
    slurm.answer(squeue={"out": "".join(lines)})
    result = slurm.run("status")
    assert result.exit_code == 0
    assert result.stderr.startswith(f"ollampi: the endpoint file {slurm.endpoints / '5.json'} cannot be read")
    cells = [line.split("    ") for line in result.stdout.splitlines()]
    found = [[cell.strip() for cell in line if cell.strip()] for line in cells]
    assert found == [
        ["JOB", "NAME", "STATE", "TIME", "NODES", "MODEL", "URL"],
        ["9", "ollampi", "GONE", "-", "-", "old", "gone; `ollampi slurm stop 9` removes its file"],
        ["100_2", "ollampi", "RUNNING", "1:23", "n[1-2]", "demo", "http://n1:47_2"],
        ["100_3", "ollampi", "RUNNING", "1:23", "n[1-2]", "-", "not ready yet"],
        ["100_10", "ollampi", "RUNNING", "1:23", "n[1-2]", "demo", "http://n1:4710"],
        ["101", "ollampi", "PENDING", "1:23", "-", "-", "Resources: waits until nodes are free"],
    ]
    jobs = {each["job_id"]: each for each in json.loads(slurm.run("status", "--json").stdout)["jobs"]}
    assert list(jobs) == ["9", "100_2", "100_3", "100_10", "101"]
    assert [job_id for job_id, each in jobs.items() if each["ready"]] == ["100_2", "100_10"]
    assert jobs["100_2"]["endpoint_file"] == str(slurm.endpoints / "100_2.json")
    assert jobs["101"]["reason"] == "Resources"
    assert "very secret" not in result.output + json.dumps(jobs)


def test_status_of_one_job(slurm: FakeSlurm) -> None:
    endpoint.write(an_endpoint(logs="/logs"), slurm.endpoints)
    slurm.answer(squeue={"out": row("100")})
    result = slurm.run("status", "100")
    told = {name: value.strip() for name, value in (line.split(":", 1) for line in result.stdout.splitlines())}
    assert told.pop("Ready").startswith("2026-01-02T03:04:05+00:00 (")
    assert told == {
        "Job": "100",
        "Name": "ollampi",
        "State": "RUNNING",
        "Nodes": "n[1-2]",
        "Time": "1:23 of 1:00:00",
        "Start": "2026-01-02T03:04:05",
        "URL": "http://n1:4700",
        "Model": "demo",
        "Ranks": "2",
        "Logs": "/logs",
        "Key": f"the token in {slurm.endpoints / '100.json'}",
    }
    assert "very secret" not in result.output
    slurm.answer(squeue={"out": row("100_0", "PENDING", reason="JobHeldUser", start="N/A") + row("100_1")})
    text = slurm.run("status", "100").stdout
    assert "JobHeldUser: is held: `scontrol release JOB`" in text
    assert "N/A" not in text
    assert text.count("Job:") == 3
    slurm.answer(squeue=GONE)
    assert [job["state"] for job in json.loads(slurm.run("status", "100", "--json").stdout)["jobs"]] == ["GONE"]
    result = slurm.run("status", "77")
    assert (result.exit_code, result.stderr[:37]) == (1, "Error: there is no job 77 of ollampi;")


def test_status_tells_of_servers_while_the_controller_is_away(slurm: FakeSlurm) -> None:
    slurm.answer(squeue=AWAY)
    empty = slurm.run("status")
    assert (empty.exit_code, empty.stdout) == (1, "")
    assert "`scontrol ping`" in empty.stderr
    endpoint.write(an_endpoint(), slurm.endpoints)
    result = slurm.run("status")
    assert result.exit_code == 1
    assert result.stdout.splitlines()[1].split() == ["100", "ollampi", "UNKNOWN", "-", "-", "demo", "http://n1:4700"]
    assert result.stderr.count("\n") == 1


def test_what_files_and_queue_hold_steers_no_terminal(slurm: FakeSlurm) -> None:
    endpoint.write(an_endpoint(model="a\x1b[2Jb", url="http://x\x07"), slurm.endpoints)
    slurm.answer(squeue={"out": row("100", name="\x1b]0;title") + row("101", "PENDING", reason="\x1b[31m")})
    for args in (["status"], ["status", "100"]):
        assert not set(slurm.run(*args).stdout) & set("\x1b\x07")


def test_stop_drains_what_runs_and_cancels_what_waits(slurm: FakeSlurm) -> None:
    for job_id in ("100_0", "100_3"):
        endpoint.write(an_endpoint(job_id), slurm.endpoints)
    lines = [row("100_0"), row("100_1"), row("100_2", "PENDING"), row("100_3", "COMPLETED")]
    slurm.answer(squeue={"out": "".join(lines)})
    result = slurm.run("stop", "100")
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines() == [
        "job 100_0 finishes what runs, and ends",
        "job 100_1 finishes what runs, and ends",
        "job 100_2 is cancelled",
        "job 100_3 is over",
    ]
    assert slurm.words("scancel") == [
        *(["scancel", "--batch", "--signal=USR1", job_id] for job_id in ("100_0", "100_1")),
        ["scancel", "100_2"],
    ]
    assert os.listdir(slurm.endpoints) == ["100_0.json"]  # which its server removes


def test_stop_now_cancels(slurm: FakeSlurm) -> None:
    endpoint.write(an_endpoint(), slurm.endpoints)
    slurm.answer(squeue={"out": row("100")})
    assert slurm.run("stop", "100", "--now").stdout == "job 100 is cancelled\n"
    assert slurm.words("scancel") == [["scancel", "100"]]
    assert os.listdir(slurm.endpoints) == []


def test_stop_cancels_a_job_that_cannot_be_told_to_drain(slurm: FakeSlurm) -> None:
    failed = {"err": "scancel: error: Signal 10 for job 100: Job step not running\n", "status": 1}
    slurm.answer(squeue={"out": row("100")}, scancel=[failed, {}])
    result = slurm.run("stop", "100")
    assert (result.exit_code, result.stdout) == (0, "job 100 is cancelled\n")
    assert slurm.words("scancel")[1] == ["scancel", "100"]


def test_stop_removes_the_file_of_a_job_that_is_gone(slurm: FakeSlurm) -> None:
    endpoint.write(an_endpoint(), slurm.endpoints)
    slurm.answer(squeue=GONE)
    assert slurm.run("stop", "100").stdout == "job 100 is over\n"
    assert slurm.words("scancel") == []
    assert os.listdir(slurm.endpoints) == []


@pytest.mark.parametrize(
    ("job", "answer", "text"),
    [
        ("100", {"out": row("100", comment="(null)", name="train")}, "there is no job 100 of ollampi"),
        ("100", GONE, "there is no job 100 of ollampi"),
        ("100", AWAY, "`scontrol ping`"),
        ("1x", {}, "'1x' is no id of a job"),
    ],
)
def test_stop_touches_no_job_that_is_not_ours(slurm: FakeSlurm, job: str, answer: dict[str, Any], text: str) -> None:
    endpoint.write(an_endpoint("9"), slurm.endpoints)
    slurm.answer(squeue=answer)
    result = slurm.run("stop", job)
    assert result.exit_code == 1
    assert text in result.stderr
    assert slurm.words("scancel") == []
    assert os.listdir(slurm.endpoints) == ["9.json"]


def test_logs(slurm: FakeSlurm) -> None:
    output = slurm.cwd / "my x.log"
    told = {"out": f"JobId=100 JobName=x\n   StdOut={output}\n   WorkDir={slurm.cwd}\n"}
    slurm.answer(scontrol=told, squeue={"out": row("100", "PENDING", reason="Priority")})
    result = slurm.run("logs", "100")
    assert result.exit_code == 1
    assert f"job 100 has not written {output} yet; it is PENDING (Priority: others are before it)" in result.stderr
    output.write_text("one\x1b[2J\ntwo\n")
    assert slurm.run("logs", "100").stdout == "one\N{REPLACEMENT CHARACTER}[2J\ntwo\n"
    folder = slurm.cwd / "logs"
    folder.mkdir()
    (folder / "cluster_worker-1.log").write_text("of a rank\n")
    endpoint.write(an_endpoint(logs=str(folder)), slurm.endpoints)
    assert slurm.run("logs", "100", "--rank", "1").stdout == "of a rank\n"
    assert "the ranks of job 100 are 0 to 1" in slurm.run("logs", "100", "--rank", "2").stderr


def test_logs_are_followed_until_the_job_is_over(slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slurm_logs, "_LOOK_S", 0.01)
    monkeypatch.setattr(slurm_logs, "_ASK_S", 0.02)
    output = slurm.cwd / "x.log"
    queue = [
        {"out": row("100", "PENDING")},
        AWAY,  # which ends nothing
        {"out": row("100"), "writes": {str(output): "one\n"}},
        {"out": row("100", "COMPLETED"), "writes": {str(output): "two\n"}},
    ]
    slurm.answer(scontrol={"out": f"JobId=100\n   StdOut={output}\n"}, squeue=queue)
    result = slurm.run("logs", "100", "--follow")
    assert (result.exit_code, result.stdout) == (0, "one\ntwo\n")
    slurm.answer(scontrol={"out": f"JobId=100\n   StdOut={output}x\n"}, squeue=GONE)
    assert f"job 100 has not written {output}x yet; it is over" in slurm.run("logs", "100", "--follow").stderr


@pytest.mark.parametrize("overrides", [[], ["model=tiny"], ["a=1", "--help"], ["--config", "x"], ["model=a b"]])
def test_a_job_becomes_the_supervisor(become: list[Any], overrides: list[str]) -> None:
    result = CliRunner().invoke(main, ["slurm", "job", *overrides])
    assert isinstance(result.exception, Become)
    assert become == [sys.executable, [sys.executable, "-m", "ollampi.launcher.slurm_job", *overrides]]


def test_the_shell_completes_jobs_without_asking_slurm(slurm: FakeSlurm) -> None:
    for job_id in ("100_0", "100_1", "9"):
        endpoint.write(an_endpoint(job_id), slurm.endpoints)

    def complete(*words: str) -> list[str]:
        env = {"COMP_WORDS": " ".join(words), "COMP_CWORD": str(len(words) - 1), "_OLLAMPI_COMPLETE": "bash_complete"}
        output = CliRunner().invoke(main, prog_name="ollampi", env={**slurm.environ, **env}).output
        return [line.removeprefix("plain,") for line in output.split()]

    assert complete("ollampi", "slurm", "stop", "1") == ["100_0", "100_1"]
    assert complete("ollampi", "slurm", "s") == ["status", "stop", "submit"]
    assert "--gpus-per-node" in complete("ollampi", "slurm", "render", "--g")
    assert slurm.calls() == []


def test_a_server_with_keys_of_its_own_has_no_token_to_name(slurm: FakeSlurm) -> None:
    endpoint.write(an_endpoint(token=""), slurm.endpoints)
    slurm.answer(squeue={"out": row("100")})
    assert slurm.run("status", "100").stdout.splitlines()[-1].split(maxsplit=1) == ["Key:", "one of server.keys"]
