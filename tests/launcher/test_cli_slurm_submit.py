"""`ollampi slurm render` and `submit` beside programs of Slurm that are not real."""

from __future__ import annotations

import json
import os
import re
import sys
from dataclasses import asdict
from typing import Any

import pytest
from support.fake_slurm import FakeSlurm, an_endpoint, row
from support.sbatch_lines import sbatch_words

from ollampi.launcher import slurm_submit, slurm_wait

AWAY = {"err": "slurm_load_jobs error: Unable to contact slurm controller (connect failure)\n", "status": 1}
GONE = {"err": "slurm_load_jobs error: Invalid job id specified\n", "status": 1}
CHECK_SETTINGS = slurm_submit._check_settings
PROGRAM = f"exec {sys.executable} -m ollampi slurm job"


def ready(slurm: FakeSlurm, *job_ids: str) -> dict[str, str]:
    """Return the endpoint files of jobs as a program of Slurm would bring them about."""
    return {str(slurm.endpoints / f"{job_id}.json"): json.dumps(asdict(an_endpoint(job_id))) for job_id in job_ids}


def test_render_prints_what_submit_submits(slurm: FakeSlurm) -> None:
    wanted = ["--nodes", "2", "--ntasks=4", "--mem", "8G", "--job-name", "a b", "--no-requeue", "--time=1:00:00"]
    wanted += ["--listen", ":1", "model=a $(b)", "drain_timeout_s=300"]
    printed = slurm.run("render", *wanted)
    assert printed.exit_code == 0, printed.output
    assert slurm.calls() == []
    assert printed.stdout.splitlines()[-2:] == [
        f"export OLLAMPI_ENDPOINTS={slurm.endpoints}",
        f"{PROGRAM} --listen :1 'model=a $(b)' drain_timeout_s=300",
    ]
    words = sbatch_words(printed.stdout)
    assert {"--nodes=2", "--ntasks=4", "--mem=8G", "--job-name=a b", "--no-requeue", "--signal=B:USR1@360"} < set(words)
    slurm.answer(sbatch={"out": "100\n", "err": "sbatch: note\n"})
    sent = slurm.run("submit", *wanted)
    assert (sent.exit_code, sent.stdout, sent.stderr) == (0, "100\n", "ollampi: note\n")
    (call,) = slurm.calls()
    assert call["stdin"] == printed.stdout
    assert re.fullmatch("--comment=ollampi:[0-9a-f]{16}", call["words"][-1])


def test_render_keeps_bytes_that_are_no_text(slurm: FakeSlurm) -> None:
    assert slurm.run("render", "model=\udcff").stdout_bytes.endswith(b" slurm job 'model=\xff'\n")
    assert b"OLLAMPI_ENDPOINTS" not in slurm.run("render", env={"OLLAMPI_ENDPOINTS": None}).stdout_bytes


def test_submit_hands_on_no_secrets_and_no_defaults_that_the_script_overrules(slurm: FakeSlurm) -> None:
    slurm.answer(sbatch={"out": "100\n"})
    given = {"OLLAMA_API_KEY": "k", "SBATCH_PARTITION": "p", "SBATCH_ACCOUNT": "a", "SLURM_JOB_ID": "1", "OMP_X": "1"}
    assert slurm.run("submit", "--partition", "gpu", env=given).exit_code == 0
    got = slurm.calls("sbatch")[0]["env"]
    assert {name for name in given if name in got} == {"SBATCH_ACCOUNT", "OMP_X"}


@pytest.mark.parametrize(
    ("args", "text"),
    [
        (["model"], "Error: 'model' is no setting; write key=value"),
        (["--wrap=id"], "Error: '--wrap=id' is no setting; write key=value"),
        (["server.prot=1"], "Error: unknown setting 'server.prot'; server has: host, port,"),
        (["--config", "/nowhere.json"], "Error: --config names /nowhere.json, which is no file; give the path"),
        (["--job-name", "a\nb"], "Error: --job-name is 'a\\nb'; it must be a name"),
        (["--partition", "x --wrap=id"], "Error: --partition is 'x --wrap=id'; it must be"),
        (["--time", "1"], "Error: --time is 1; the server drains 120 s before"),
        (["--output", "nowhere/x.log"], "Error: --output is 'nowhere/x.log', but 'nowhere' is no folder that can be"),
        (["--wait", "--wait-timeout", "0"], "Error: --wait-timeout is 0; it must be a number of seconds above 0"),
        (["--ntasks", "1", "--nodes", "2"], "Error: 1 ranks cannot be spread over 2 nodes; give --ntasks 2"),
    ],
)
def test_nothing_is_submitted_that_cannot_serve(slurm: FakeSlurm, args: list[str], text: str) -> None:
    result = slurm.run("submit", *args)
    assert result.exit_code == 1
    assert result.stderr.startswith(text)
    assert result.stderr.count("\n") == 1
    assert slurm.calls() == []


def test_settings_that_do_not_fit_each_other_are_told_before(slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slurm_submit, "_check_settings", CHECK_SETTINGS)
    result = slurm.run("submit", "cluster.node_timeout=1", "cluster.heartbeat_interval=1")
    assert result.stderr.startswith("Error: cluster.node_timeout is 1 s; it must be at least twice")
    assert (result.exit_code, result.output.count("\n"), slurm.calls()) == (1, 1, [])
    slurm.answer(sbatch={"out": "100\n"})
    assert slurm.run("submit", "model=x", env={"PYTHONPATH": os.environ.get("PYTHONPATH")}).stdout == "100\n"


def test_a_folder_for_endpoints_that_cannot_be_written_is_told_before(slurm: FakeSlurm) -> None:
    (slurm.cwd / "file").touch()
    result = slurm.run("submit", env={"OLLAMPI_ENDPOINTS": str(slurm.cwd / "file" / "x")})
    assert "give a folder that all hosts see as OLLAMPI_ENDPOINTS" in result.stderr
    assert (result.exit_code, slurm.calls()) == (1, [])


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (
            {"err": "sbatch: error: Batch job submission failed: Invalid account\n", "status": 1},
            "give another --account",
        ),
        (AWAY, "`scontrol ping` shows whether Slurm's controller is up"),
        (None, "log in to a host with Slurm's programs"),
    ],
)
def test_a_refused_job_is_one_message(slurm: FakeSlurm, answer: dict[str, Any] | None, text: str) -> None:
    slurm.answer(sbatch=answer or {})
    if answer is None:
        (slurm.programs / "sbatch").unlink()
    result = slurm.run("submit", "--wait")
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: ")
    assert text in result.stderr
    assert result.output.count("\n") == 1
    assert slurm.words("scancel", "squeue") == []
    assert os.listdir(slurm.endpoints) == []


def test_submit_waits_for_the_server(slurm: FakeSlurm) -> None:
    queue = [{"out": row("100", "PENDING", reason="Priority")}, {"out": row("100"), "writes": ready(slurm, "100")}]
    slurm.answer(sbatch={"out": "100\n"}, squeue=queue)
    result = slurm.run("submit", "--wait")
    assert (result.exit_code, result.stdout) == (0, "100\nhttp://n1:4700\n")
    assert result.stderr.splitlines() == [
        "ollampi: job 100 is PENDING (Priority: others are before it)",
        "ollampi: job 100 is RUNNING",
        f"ollampi: job 100 is ready; its key is the token in {slurm.endpoints / '100.json'}",
    ]


def test_submit_waits_for_all_replicas(slurm: FakeSlurm) -> None:
    both = ready(slurm, "100_0", "100_1")
    slurm.answer(sbatch={"out": "100\n"}, squeue={"out": row("100_0") + row("100_1"), "writes": both})
    result = slurm.run("submit", "--wait", "--array", "2")
    assert (result.exit_code, result.stdout) == (0, "100\nhttp://n1:47_0\nhttp://n1:47_1\n")
    assert "--array=0-1" in sbatch_words(slurm.calls("sbatch")[0]["stdin"])


def test_a_job_that_can_never_start_is_cancelled(slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slurm_wait, "_ASK_S", 0.01)
    slurm.answer(sbatch={"out": "100\n"}, squeue={"out": row("100", "PENDING", reason="PartitionNodeLimit")})
    result = slurm.run("submit", "--wait", "--nodes", "9")
    assert (result.exit_code, result.stderr.splitlines()[-1]) == (
        1,
        "Error: job 100 would wait for ever: PartitionNodeLimit: its --nodes are more than the partition allows;"
        " ask for less, or another --partition; it is cancelled",
    )
    assert slurm.words("scancel") == [["scancel", "100"]]


def test_what_srun_says_last_does_not_hide_why_a_server_ended(slurm: FakeSlurm) -> None:
    output = slurm.cwd / "x.log"
    said = "ollampi: the ranks ended 3 times in a row before they were ready; the first time, with status 1:\n"
    output.write_text(
        f"{said}ollampi: model 'x' not found\nsrun: error: n1: task 0: Exited with exit code 1\nsrun: so\n"
    )
    told = f"JobId=100 JobName=x\n   StdOut={output}\n   WorkDir=/\n"
    slurm.answer(sbatch={"out": "100\n"}, squeue={"out": row("100", "FAILED")}, scontrol={"out": told})
    told = f"FAILED: model 'x' not found; {output} has it all"
    assert slurm.run("submit", "--wait").stderr.splitlines()[-1].endswith(told)
    output.write_text(f"{said}Traceback\nValueError: no\n")
    assert (
        slurm.run("submit", "--wait").stderr.splitlines()[-1].endswith(f"FAILED: ValueError: no; {output} has it all")
    )


def test_a_server_that_ends_early_takes_the_other_replicas_with_it(slurm: FakeSlurm) -> None:
    output = slurm.cwd / "x.log"
    output.write_text("serving...\nError: model 'x' not found\n\n")
    told = f"JobId=101 ArrayJobId=100 ArrayTaskId=1 JobName=x\n   StdOut={output}\n   WorkDir=/\n"
    slurm.answer(sbatch={"out": "100\n"}, squeue={"out": row("100_0") + row("100_1", "FAILED")}, scontrol={"out": told})
    result = slurm.run("submit", "--wait", "--array", "2")
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1] == (
        f"Error: job 100_1 ended before its server was ready: FAILED: model 'x' not found; {output} has it all"
    )
    assert slurm.words("scancel") == [["scancel", "100"]]
    slurm.answer(sbatch={"out": "100\n"}, squeue={"out": row("100", "FAILED")}, scontrol=GONE)
    assert "`ollampi slurm logs 100` prints what it wrote" in slurm.run("submit", "--wait").stderr


def test_a_late_server_stays(slurm: FakeSlurm) -> None:
    slurm.answer(sbatch={"out": "100\n"}, squeue={"out": row("100", "PENDING", reason="Resources")})
    result = slurm.run("submit", "--wait", "--wait-timeout", "0.5")
    assert (result.exit_code, result.stdout) == (1, "100\n")
    assert "Error: after 0.5 s 1 of 1 servers are not ready: 100 is PENDING (Resources" in result.stderr
    assert result.stderr.endswith("; job 100 stays; `ollampi slurm stop 100` ends it\n")
    assert slurm.words("scancel") == []


def test_ctrl_c_ends_the_waiting_and_not_the_job(slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(slurm_submit, "wait_ready", interrupted)
    slurm.answer(sbatch={"out": "100\n"})
    result = slurm.run("submit", "--wait")
    assert (result.exit_code, result.stdout) == (130, "100\n")
    assert result.stderr == "ollampi: job 100 stays; `ollampi slurm stop 100` ends it\n\n"
    assert slurm.words("scancel") == []


def test_the_letters_of_sbatch_are_taken(slurm: FakeSlurm) -> None:
    letters = ["-N2", "-n", "4", "-c", "3", "-t", "1:00:00", "-pgpu", "-A", "a", "-q", "q"]
    letters += ["-C", "c", "-x", "n1", "-J", "j", "-o", "x"]
    words = sbatch_words(slurm.run("render", *letters, "model=demo").stdout)
    assert set(words) > {
        *("--nodes=2", "--ntasks=4", "--cpus-per-task=3", "--time=1:00:00", "--partition=gpu", "--account=a"),
        *("--qos=q", "--constraint=c", "--exclude=n1", "--job-name=j", "--output=x"),
    }
