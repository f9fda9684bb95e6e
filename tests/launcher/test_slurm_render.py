"""The batch script: golden files, and whatever a user gives arrives as one word or is refused."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from support.sbatch_lines import sbatch_words

from ollampi.launcher.slurm_render import Job, render, word
from ollampi.mpiruntime.errors import ConfigError

GOLDEN = Path(__file__).parent / "golden"
FULL = Job(
    nodes=2,
    ntasks=8,
    cpus_per_task=4,
    gpus_per_node=4,
    mem="64G",
    time="1-00:00:00",
    partition="gpu,long",
    account="proj_1",
    qos="high",
    constraint="a100&ib",
    exclude="n[1-3],m7",
    name="my model",
    output="/scratch/my logs/%x-%j.log",
    requeue=False,
)
# What has harmed others: shells, options of sbatch, lines of their own, references, comments, other alphabets.
PIECES = [
    *"'\"\\$`;&|<>(){}[]*?!#~^%=,:/-+@ \t\r\n\x01\x1b\x7fabjx09",
    *("$(touch canary)", "`touch canary`", "; touch canary", "\n#SBATCH --wrap=x\n", "--wrap=id", "-x", "${HOME}"),
    *("packjob", "HetJob", "é", "日本", "\U0001f600", "\u2028", "\u00a0", "\u202e", "\udcff"),
    *("%j", "%%", "\r\n", "''", '""', "!!", "\\n", "~/x"),
]


def texts(count: int, seed: int) -> list[str]:
    """Return single pieces, and rows of pieces."""
    draw = random.Random(seed)
    return [*PIECES, *("".join(draw.choices(PIECES, k=draw.randint(2, 9))) for _ in range(count))]


@pytest.mark.parametrize(
    ("name", "job", "overrides", "program", "endpoints"),
    [
        ("plain", Job(), ["model=demo"], ["ollampi"], ""),
        (
            "full",
            FULL,
            ["model=/models/My Model", "quantize=q4"],
            ["/opt/py/bin/python", "-m", "ollampi"],
            "/shared/ep",
        ),
        ("array", Job(nodes=2, replicas=3, time="8:00:00", lead_s=200), ["model=demo"], ["ollampi"], ""),
        (
            "quoting",
            Job(name='it\'s "a" #1 $(id) packjob é', output="logs/50%% \"q\" 'p' #%j.log", constraint="[r1|r2]*(2)"),
            ['model=it\'s $(id) `id` "q" \\ ~ #é', "trace=a\nb\r\n\tc", "--config", "~/my file.yaml", ""],
            ["/home/a b/ollampi"],
            "/shared/$x",
        ),
    ],
)
def test_the_script_is_as_it_was(
    name: str, job: Job, overrides: list[str], program: list[str], endpoints: str, tmp_path: Path
) -> None:
    script = render(job, overrides, program, endpoints)
    path = GOLDEN / f"slurm_{name}.sh"
    if os.environ.get("OLLAMPI_GOLDEN") == "write":
        path.write_bytes(script.encode())
    assert script.encode() == path.read_bytes(), "OLLAMPI_GOLDEN=write writes the files anew"
    done = subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_lines_mean_what_was_asked_for() -> None:
    assert sbatch_words(render(FULL, [])) == [
        *["--job-name=my model", "--comment=ollampi", "--nodes=2", "--ntasks=8", "--cpus-per-task=4"],
        *["--gpus-per-node=4", "--mem=64G", "--time=1-00:00:00", "--partition=gpu,long", "--account=proj_1"],
        *[
            "--qos=high",
            "--constraint=a100&ib",
            "--exclude=n[1-3],m7",
            "--output=/scratch/my logs/%x-%j.log",
            "--open-mode=append",
        ],
        *["--signal=B:USR1@120", "--no-kill", "--no-requeue"],
    ]
    assert "--ntasks=3" in sbatch_words(render(Job(nodes=3), []))
    assert "--array=0-1" in sbatch_words(render(Job(replicas=2), []))


def executed(folder: Path, script: str) -> list[str]:
    """Return the words that the program gets when bash runs a script."""
    folder.mkdir(exist_ok=True)
    done = subprocess.run(
        ["bash"], input=os.fsencode(script), capture_output=True, cwd=folder, env={"PATH": os.environ["PATH"]}
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert not list(folder.iterdir()), "a shell ran something"
    found: list[str] = json.loads(done.stdout)
    return found


@pytest.fixture
def program(tmp_path: Path) -> str:
    """Return a program, in a folder with a name of its kind, that prints its words and a variable as JSON."""
    path = tmp_path / "it's $(touch canary) `x`" / "ollampi"
    path.parent.mkdir()
    path.write_text(
        f"#!{sys.executable} -I\nimport json, os, sys\n"
        "print(json.dumps([os.environ.get('OLLAMPI_ENDPOINTS', ''), *sys.argv[1:]]))\n"
    )
    path.chmod(0o755)
    return str(path)


def test_every_setting_arrives_as_one_word(program: str, tmp_path: Path) -> None:
    given = texts(1500, 1)
    keyed = [f"model={text}" for text in given]
    assert executed(tmp_path / "cwd", render(Job(), [*given, *keyed], [program])) == [
        "",
        "slurm",
        "job",
        *given,
        *keyed,
    ]
    for text in texts(30, 2):
        script = render(Job(name="x"), [f"model={text}"], [program], text)
        assert executed(tmp_path / "cwd", script) == [text, "slurm", "job", f"model={text}"]


def test_a_word_has_one_line_whatever_it_holds() -> None:
    for text in texts(500, 3):
        assert len(f"{word(text)}.".splitlines()[0].split("\n")) == 1
        assert not set(word(text)) & {"\n", "\r", "\x00", "\x1b"}


def rendered_or_refused(option: str, text: str, refusal: str) -> str | None:
    """Return the script, or None where the value was refused in one line that begins so."""
    try:
        return render(replace(Job(), **{option: text}), ["model=demo"])  # type: ignore[arg-type]
    except ConfigError as error:
        said = str(error)
    assert said.startswith(refusal)
    assert "\n" not in said
    return None


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize(
    "option", ["name", "output", "partition", "account", "qos", "constraint", "exclude", "mem", "time"]
)
def test_a_value_arrives_as_one_word_of_sbatch_or_is_refused(option: str, old: bool) -> None:
    sbatchs, plain = {"name": "job-name"}.get(option, option), sbatch_words(render(Job(), []), old)
    taken = 0
    for text in texts(2000, 4):
        script = rendered_or_refused(option, text, f"--{sbatchs} is ")
        if script is None:
            continue
        words = sbatch_words(script, old)
        assert words.count(f"--{sbatchs}={text}") == 1
        others = [each for each in plain if not each.startswith(f"--{sbatchs}=")]
        assert [each for each in words if not each.startswith(f"--{sbatchs}=")] == others
        assert script.endswith("\nexec ollampi slurm job model=demo\n")
        taken += 1
    assert taken > {"name": 100, "output": 50}.get(option, -1)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"name": "a\nb"}, r"--job-name is 'a\\nb'; it must be a name that does not begin with -, in one line"),
        ({"name": ""}, "--job-name is ''"),
        ({"name": "--wrap=x"}, "--job-name is '--wrap=x'"),
        ({"name": "x" * 1025}, "--job-name is 'xxx"),
        ({"partition": "a b"}, "--partition is 'a b'; it must be the name of a partition"),
        ({"account": "$(id)"}, "--account is"),
        ({"qos": "-q"}, "--qos is '-q'"),
        ({"constraint": "a;b"}, "--constraint is 'a;b'; it must be features of nodes, such as a100&ib"),
        ({"exclude": "n1 n2"}, "--exclude is 'n1 n2'; it must be names of nodes"),
        ({"mem": "64 G"}, "--mem is '64 G'; it must be a size for each node, such as 64G"),
        ({"mem": "-1"}, "--mem is '-1'"),
        ({"output": "50%.log"}, "--output is '50%.log'; it must be a path without"),
        ({"output": "a\\b"}, "in which %j stands for the job and %% for a %, in one line"),
        ({"time": "soon"}, "--time is 'soon'; it must be MINUTES, H:MM:SS, D-HH or D-HH:MM:SS, such as 2:00:00"),
        ({"time": "3"}, "the server drains 120 s before the limit, and Slurm may tell it 60 s earlier: .* 3 minutes"),
        ({"time": "5:00", "lead_s": 600}, "the server drains 600 s before the limit, .*: give more than 11 minutes"),
        ({"nodes": 0}, "--nodes is 0; it must be at least 1"),
        ({"ntasks": -1}, "--ntasks is -1; it must be at least 1"),
        ({"cpus_per_task": 0}, "--cpus-per-task is 0; it must be at least 1"),
        ({"gpus_per_node": -1}, "--gpus-per-node is -1; it must be at least 0"),
        ({"replicas": 0}, "--array is 0; it must be at least 1"),
        ({"nodes": 3, "ntasks": 2}, "2 ranks cannot be spread over 3 nodes; give --ntasks 3 or more, or fewer --nodes"),
    ],
)
def test_what_sbatch_would_refuse_is_said(change: dict[str, object], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        render(replace(Job(), **change), [])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "time", ["4", "240", "3:01", "1:00:00", "1-0", "0-1:30", "2-03:04:05", "UNLIMITED", "infinite", "0"]
)
def test_times_of_slurm_are_taken(time: str) -> None:
    assert f"--time={time}" in sbatch_words(render(Job(time=time), []))
