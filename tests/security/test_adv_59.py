"""Advisory 59: names that users give run nothing through sbatch, and no token is where others can read it."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from support.fake_slurm import FakeSlurm, an_endpoint, row
from support.sbatch_lines import sbatch_words

from ollampi.launcher import cli_slurm, endpoint, slurm_submit

NAMES = [
    "x; touch canary",
    "$(touch canary)",
    "`touch canary`",
    "a\ntouch canary\n",
    "a\n#SBATCH --wrap=touch canary",
    "--wrap=touch canary",
    "-x",
    "'; touch canary; '",
    '"; touch canary; "',
    "x' --wrap='touch canary",
    'x" --wrap="touch canary',
    "x #SBATCH",
    "x\\",
    "| touch canary",
    "&& touch canary &",
    "> canary",
    "${IFS}touch${IFS}canary",
    "packjob",
]


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    """Return programs of Slurm; what the script starts prints its words as JSON."""
    fake = FakeSlurm(tmp_path / "slurm")
    program = fake.programs / "ollampi"
    program.write_text(f"#!{sys.executable} -IS\nimport json, sys\nprint(json.dumps(sys.argv[1:]))\n")
    program.chmod(0o755)
    monkeypatch.chdir(fake.cwd)
    monkeypatch.setattr(cli_slurm, "_PROGRAM", (str(program),))
    monkeypatch.setattr(slurm_submit, "_check_settings", lambda _overrides, _environ: None)
    fake.answer(sbatch={"out": "100\n"})
    return fake


def executed(slurm: FakeSlurm, script: str) -> list[str]:
    """Return the words that the program gets when the node's bash runs a script."""
    environ = {"PATH": os.environ["PATH"], "HOME": str(slurm.folder)}
    done = subprocess.run(["bash"], input=script, capture_output=True, text=True, cwd=slurm.cwd, env=environ)
    assert (done.returncode, done.stderr) == (0, "")
    found: list[str] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("name", NAMES)
def test_a_hostile_name_runs_nothing(slurm: FakeSlurm, name: str) -> None:
    settings = [f"model={name}", f"trace={name}", f"store={name}"]
    assert slurm.run("submit", *settings).exit_code == 0
    (call,) = slurm.calls()
    assert call["words"][0] == "--parsable"
    assert call["words"][1].startswith("--comment=ollampi:")
    assert executed(slurm, call["stdin"]) == ["slurm", "job", *settings]
    plain = slurm.run("render").stdout
    assert sbatch_words(call["stdin"]) == sbatch_words(plain)
    assert os.listdir(slurm.cwd) == []


@pytest.mark.parametrize(
    "option", ["--job-name", "--partition", "--account", "--qos", "--constraint", "--exclude", "--mem", "--time"]
)
@pytest.mark.parametrize("name", NAMES)
def test_a_hostile_option_is_one_word_or_refused(slurm: FakeSlurm, option: str, name: str) -> None:
    result = slurm.run("submit", f"{option}={name}")
    if result.exit_code:
        assert result.stderr.startswith(f"Error: {option} is ")
        assert slurm.calls() == []
    else:
        script = slurm.calls()[0]["stdin"]
        assert sbatch_words(script).count(f"{option}={name}") == 1
        assert not [word for word in sbatch_words(script) if word.startswith("--wrap")]
        assert executed(slurm, script) == ["slurm", "job"]
    assert os.listdir(slurm.cwd) == []


@pytest.mark.parametrize("command", ["status", "stop", "logs"])
@pytest.mark.parametrize("name", NAMES)
def test_what_is_no_job_reaches_no_program(slurm: FakeSlurm, command: str, name: str) -> None:
    result = slurm.run(command, "--", name)
    assert result.exit_code == 1
    assert "is no id of a job" in result.stderr
    assert slurm.calls() == []


def test_no_token_is_where_others_can_read_it(slurm: FakeSlurm) -> None:
    path = endpoint.write(an_endpoint(), slurm.endpoints)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    told = "JobId=100 JobName=x\n   StdOut=/nowhere\n"
    slurm.answer(sbatch={"out": "100\n"}, squeue={"out": row("100")}, scontrol={"out": told})
    keys = {"OLLAMA_API_KEY": "very secret", "HF_TOKEN": "very secret"}
    commands = (["submit"], ["status"], ["status", "100"], ["status", "--json"], ["logs", "100"], ["stop", "100"])
    outputs = [slurm.run(*command, env=keys).output for command in commands]
    assert "very secret" not in "".join(outputs)
    assert "very secret" not in json.dumps([[call["words"], call["stdin"]] for call in slurm.calls()])
    assert "very secret" not in json.dumps(slurm.calls("sbatch"))
