"""Slurm's programs get lists of words, and their answers and refusals are read with care."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from support.fake_slurm import FakeSlurm, an_endpoint, row

from ollampi.launcher import slurm_client
from ollampi.launcher.slurm_client import SlurmError, cancel, described, drain, queue, submit
from ollampi.launcher.slurm_environment import passed_on
from ollampi.launcher.slurm_refused import reason_words, refusal
from ollampi.launcher.slurm_status import server_text, servers, status_json, status_text
from ollampi.mpiruntime.errors import ConfigError

TAG = "ollampi:1"


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    fake = FakeSlurm(tmp_path / "slurm")
    for name, value in fake.environ.items():
        monkeypatch.setenv(name, value)
    return fake


def test_a_script_goes_to_stdin(slurm: FakeSlurm) -> None:
    slurm.answer(sbatch={"out": "100\n", "err": "sbatch: warning: a note\n"})
    script = "#!/bin/bash\nexec ollampi é \udcff\n"
    assert submit(script, slurm.environ, TAG) == ("100", ["warning: a note"])
    (call,) = slurm.calls()
    assert call["words"] == ["--parsable", "--comment=ollampi:1"]
    assert call["stdin"] == script


@pytest.mark.parametrize("said", ["100\n", "100;cluster-1\n", "Welcome to 5\nYou have 7 hours left\n100\n", "  100  "])
def test_the_id_of_a_job_is_found(slurm: FakeSlurm, said: str) -> None:
    slurm.answer(sbatch={"out": said})
    assert submit("", slurm.environ, TAG)[0] == "100"


@pytest.mark.parametrize("said", ["", "Submitted\n", "-1\n", "1.5\n", "9" * 30, "100 200\n"])
def test_an_sbatch_that_names_no_job_is_told(slurm: FakeSlurm, said: str) -> None:
    slurm.answer(sbatch={"out": said})
    with pytest.raises(SlurmError, match=r"sbatch named no job but said .*; `ollampi slurm status` lists"):
        submit("", slurm.environ, TAG)


@pytest.mark.parametrize(
    ("told", "remedy"),
    [
        ("{}Invalid partition name specified", "`sinfo -s` lists"),
        ("{}Invalid account or account/partition combination specified", "another --account"),
        ("sbatch: error: invalid qos specification", "another --qos"),
        (
            "sbatch: error: CPU count per node can not be satisfied\n{}Requested node configuration is not available",
            "no nodes are like that: give less of --nodes",
        ),
        ("sbatch: error: Memory specification can not be satisfied", "give less --mem"),
        ("{}Requested time limit is invalid (missing or exceeds some limit)", "shorter --time"),
        ("{}Invalid generic resource (gres) specification", "--gpus-per-node"),
        ("{}Invalid feature specification", "--constraint"),
        (
            "sbatch: error: AssocMaxSubmitJobLimit\n{}Job violates accounting/QOS policy (job submit limit, user's size"
            " and/or time limits)",
            "stop another job, or wait",
        ),
        ("{}Unable to contact slurm controller (connect failure)", "`scontrol ping` shows"),
        ("{}Socket timed out on send/recv operation", "may be in the queue"),
        ("sbatch: fatal: Could not establish a configuration source: resolve_ctls_from_dns_srv", "log in to one of"),
        ("sbatch: error: If munged is up, restart with --num-threads=10", "munge does not run"),
        ("sbatch: error: a plugin's own words", ""),
        ("", "it ended with status 1"),
    ],
)
def test_a_refusal_is_one_line_with_the_remedy(slurm: FakeSlurm, told: str, remedy: str) -> None:
    failed = "sbatch: error: Batch job submission failed: "
    slurm.answer(sbatch={"err": told.format(failed) + "\n", "status": 1})
    with pytest.raises(SlurmError) as raised:
        submit("", slurm.environ, TAG)
    said = str(raised.value)
    assert said.startswith("sbatch refused: ")
    assert remedy in said
    assert "\n" not in said
    assert "error:" not in said


def test_a_refusal_steers_no_terminal() -> None:
    assert refusal("sbatch", "sbatch: error: \x1b[2J\nsbatch: error: again\nsbatch: error: again", 1) == (
        "sbatch refused: \N{REPLACEMENT CHARACTER}[2J; again"
    )


def test_without_slurm_it_is_said_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    for use in (lambda: submit("", {"PATH": str(tmp_path)}, TAG), queue, lambda: cancel(["1"]), lambda: described("1")):
        with pytest.raises(SlurmError, match=r"cannot be started here .*: log in to a host with Slurm's programs"):
            use()
    (tmp_path / "squeue").touch()  # no program
    with pytest.raises(SlurmError, match="cannot be started here"):
        queue()


def test_a_silent_program_is_ended(slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slurm_client, "_PATIENCE_S", 0.5)
    slurm.answer(sbatch={"sleep": 600}, squeue={"sleep": 600})
    with pytest.raises(
        SlurmError, match=r"sbatch has not answered for 0\.5 s and was ended; the job may be in the queue"
    ):
        submit("", slurm.environ, TAG)
    with pytest.raises(SlurmError, match=r"squeue has not answered for 0\.5 s and was ended; try again"):
        queue()


@pytest.mark.parametrize(
    "answer",
    [
        {"sleep": 600},
        {"err": "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation\n", "status": 1},
        {"err": "sbatch: error: Batch job submission failed: Zero Bytes were transmitted or received\n", "status": 1},
        {"out": "something else\n"},
    ],
)
def test_a_job_whose_id_never_came_is_found_in_the_queue(
    slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch, answer: dict[str, Any]
) -> None:
    others = row("98", comment="ollampi:2") + row("99", comment="ollampi") + row("100_0", comment=TAG)
    slurm.answer(sbatch=answer, squeue={"out": others})
    if "sleep" in answer:
        monkeypatch.setattr(slurm_client, "_PATIENCE_S", 8)  # enough for squeue, too
    job_id, (warning,) = submit("", slurm.environ, TAG)
    assert job_id == "100"
    assert warning.endswith("; the job is in the queue: 100")


def test_a_refusal_that_is_sure_is_not_looked_after(slurm: FakeSlurm) -> None:
    slurm.answer(sbatch={"err": "sbatch: error: Invalid account\n", "status": 1}, squeue={"out": row("1", comment=TAG)})
    with pytest.raises(SlurmError, match="Invalid account"):
        submit("", slurm.environ, TAG)
    assert slurm.words("squeue") == []


def test_no_answer_of_slurm_breaks_a_table(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = random.Random(5)
    pieces = [*"|_[]%\n\r\x00\x1b:=,-é ", "100", "9" * 5000, "RUNNING", "ollampi", "JobId=", "StdOut=", "\u0661"]
    endpoints = {"100": an_endpoint()}
    for _ in range(3000):
        text = "".join(draw.choices(pieces, k=draw.randint(0, 40)))
        text = text if draw.random() < 0.5 else row("100", text) + row(text) + row("100_[1-2]", name=text, nodes=text)
        monkeypatch.setattr(slurm_client, "call", lambda _line, text=text: text)
        found = servers(queue(), endpoints)
        assert len(status_text(found).splitlines()) == 1 + len(found)
        assert all("\x1b" not in server_text(each, Path("/")) for each in found)
        assert json.loads(json.dumps(status_json(found, Path("/"))))["jobs"]
        described("100")


def test_the_queue_is_read(slurm: FakeSlurm) -> None:
    waiting = row("102_0", "PENDING", nodes="", elapsed="0:00", start="N/A", reason="Resources", name="a|b")
    slurm.answer(squeue={"out": row("100") + waiting})
    running, pending = queue()
    assert (running.job_id, running.state, running.nodes, running.is_pending) == ("100", "RUNNING", "n[1-2]", False)
    assert (pending.name, pending.reason, pending.start, pending.is_pending) == ("a|b", "Resources", "N/A", True)
    (words,) = slurm.words()
    assert words[:4] == ["squeue", "--noheader", "--array", f"--user={os.getuid()}"]
    assert len(words) == 5


def test_the_queue_of_one_job_has_those_that_ended(slurm: FakeSlurm) -> None:
    slurm.answer(squeue={"out": "".join(map(row, ["100_0", "100_1", "1000", "10"]))})
    assert [job.job_id for job in queue("100")] == ["100_0", "100_1"]
    assert [job.job_id for job in queue("100_1")] == ["100_1"]
    assert [words[-2:] for words in slurm.words()] == [["--states=all", "--jobs=100"]] * 2
    slurm.answer(squeue={"err": "slurm_load_jobs error: Invalid job id specified\n", "status": 1})
    assert queue("100") == []
    with pytest.raises(SlurmError, match="Invalid job id"):
        queue()


@pytest.mark.parametrize(
    "line",
    [
        "CLUSTER: one\n",
        "JOBID|ST\n",
        "\n",
        "squeue: something new\n",
        "x|RUNNING|||||||\n",
        "-1|RUNNING|||||||\n",
        "\x1b[2J|RUNNING|||||||\n",
        "1+0|RUNNING|||||||\n",  # a part of a job of several, which ours are not
    ],
)
def test_lines_that_are_no_jobs_are_left_out(slurm: FakeSlurm, line: str) -> None:
    slurm.answer(squeue={"out": line + row("100") + line})
    assert [job.job_id for job in queue()] == ["100"]


def test_states_and_fields_of_another_version_are_borne(slurm: FakeSlurm) -> None:
    slurm.answer(
        squeue={"out": row("100", "EXPEDITING") + "101|RUNNING|1:00|2:00|now|n1|None\n" + row("102", "FAILED")}
    )
    strange, short, failed = queue()
    assert (strange.has_ended, strange.is_pending) == (False, False)
    assert (short.comment, short.name) == ("", "")
    assert failed.has_ended
    slurm.answer(squeue={"out": row("103_[4-7%2]", "PENDING")})
    assert [job.job_id for job in queue()] == ["103_[4-7%2]"]


def test_own_filters_of_a_user_do_not_count(slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SQUEUE_STATES", "PD")
    monkeypatch.setenv("SCANCEL_INTERACTIVE", "1")
    queue()
    cancel(["1"])
    assert not [name for call in slurm.calls() for name in call["env"] if name.startswith(("SQUEUE_", "SCANCEL_"))]


def test_signals_and_ends(slurm: FakeSlurm) -> None:
    drain("100_1")
    cancel(["100_0", "101"])
    cancel([])
    assert slurm.words() == [["scancel", "--batch", "--signal=USR1", "100_1"], ["scancel", "100_0", "101"]]


@pytest.mark.parametrize("job_id", ["-1", "--user=root", "1 2", "", "$(id)", "1;id", "all"])
def test_what_is_no_job_reaches_no_program(slurm: FakeSlurm, job_id: str) -> None:
    uses: list[Any] = [drain, queue, described, lambda each: cancel([each])]
    for use in uses:
        with pytest.raises(ConfigError, match="is no id of a job"):
            use(job_id)
    assert slurm.calls() == []


def test_what_slurm_knows_of_a_job(slurm: FakeSlurm) -> None:
    text = (
        "JobId=101 ArrayJobId=100 ArrayTaskId=1 JobName=a job=x\n   UserId=me(1000) GroupId=me(1000)\n"
        "   StdOut=/shared/my logs/a=b.log\n   WorkDir=/shared/my folder\n   BatchHost=n1\n\nJobId=102 JobName=other\n"
    )
    slurm.answer(scontrol={"out": text})
    told = described("100_1")
    assert slurm.words() == [["scontrol", "show", "job", "100_1"]]
    assert (told["JobId"], told["JobName"], told["ArrayTaskId"]) == ("101", "a job=x", "1")
    assert (told["StdOut"], told["WorkDir"]) == ("/shared/my logs/a=b.log", "/shared/my folder")


def test_a_reason_is_told_in_words() -> None:
    assert reason_words("Resources") == "Resources: waits until nodes are free"
    assert reason_words("ReqNodeNotAvail, UnavailableNodes:n1").startswith("ReqNodeNotAvail, UnavailableNodes:n1: the ")
    assert reason_words("QOSMaxCpuPerUserLimit").endswith(": a limit of the account or its quality")
    assert reason_words("SomethingNew") == "SomethingNew"


def test_ctrl_c_leaves_no_job(slurm: FakeSlurm) -> None:
    slurm.answer(sbatch={"out": "100\n", "sleep": 2})
    program = f"from ollampi.launcher.slurm_client import submit\nsubmit('x', {slurm.environ!r}, 't')\n"
    with subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.PIPE) as process:
        while not slurm.calls("sbatch"):
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=60)
    assert b"KeyboardInterrupt" in told
    assert slurm.words("scancel") == [["scancel", "100"]]


def test_a_job_gets_what_it_needs_and_no_secrets() -> None:
    secret = ["OLLAMA_API_KEY", "OLLAMA_CLUSTER_TOKEN", "HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "MY_PASSWORD"]
    other = ["SLURM_JOB_ID", "SLURM_MEM_PER_NODE", "DISPLAY", "SSH_AUTH_SOCK", "OLLAMA_HOST", "SBATCH_EXPORT", "PS1"]
    needed = ["PATH", "HOME", "LD_LIBRARY_PATH", "OLLAMA_MODELS", "OLLAMPI_ENDPOINTS", "OMP_NUM_THREADS", "SLURM_CONF"]
    defaults = ["SBATCH_ACCOUNT", "SBATCH_PARTITION", "SBATCH_TIMELIMIT", "SBATCH_SIGNAL"]
    environ = dict.fromkeys([*secret, *other, *needed, *defaults], "x")
    assert set(passed_on(environ)) == {*needed, *defaults}
    assert set(passed_on(environ, ["partition", "time", "signal"])) == {*needed, "SBATCH_ACCOUNT"}
