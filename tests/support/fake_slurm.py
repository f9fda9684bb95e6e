"""Programs of Slurm that give canned answers and note what they got; no other program is in the PATH beside them."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result

from ollampi.launcher.cli import main
from ollampi.launcher.endpoint import Endpoint

PROGRAMS = ("sbatch", "squeue", "scancel", "scontrol")
_PROGRAM = """#!{python} -IS
import json, os, sys, time
here, name = os.path.split(os.path.abspath(__file__))
state = os.path.dirname(here)
with open(os.path.join(state, "answers.json")) as file:
    answers = json.load(file).get(name) or [{{}}]
text = sys.stdin.buffer.read().decode("utf-8", "surrogateescape") if name == "sbatch" else ""
noted = json.dumps({{"program": name, "words": sys.argv[1:], "stdin": text, "env": dict(os.environ)}})
with open(os.path.join(state, "calls"), "a+") as file:
    file.write(noted + "\\n")
    file.flush()
    file.seek(0)
    turn = sum(json.loads(line)["program"] == name for line in file) - 1
answer = answers[min(turn, len(answers) - 1)]
for path, content in answer.get("writes", {{}}).items():
    with open(path + ".new", "w") as file:
        file.write(content)
    os.replace(path + ".new", path)
time.sleep(answer.get("sleep", 0))
sys.stdout.write(answer.get("out", ""))
sys.stderr.write(answer.get("err", ""))
sys.exit(answer.get("status", 0))
"""


class FakeSlurm:
    """A folder with the programs; `answers` of each: the first for its first call, the last for all that follow."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.programs = folder, folder / "bin"
        self.endpoints, self.cwd = folder / "endpoints", folder / "cwd"
        for each in (self.programs, self.endpoints, self.cwd):
            each.mkdir(parents=True)
        for name in PROGRAMS:
            path = self.programs / name
            path.write_text(_PROGRAM.format(python=sys.executable))
            path.chmod(0o755)
        self.environ = {"PATH": str(self.programs), "OLLAMPI_ENDPOINTS": str(self.endpoints), "HOME": str(folder)}
        self.answer()

    def answer(self, **answers: list[dict[str, Any]] | dict[str, Any]) -> None:
        """Set what programs answer: out, err, status, sleep, and writes, files by path that are there then."""
        given = {name: value if isinstance(value, list) else [value] for name, value in answers.items()}
        (self.folder / "answers.json").write_text(json.dumps(given))

    def calls(self, *programs: str) -> list[dict[str, Any]]:
        """Return the calls so far, of some programs or of all."""
        path = self.folder / "calls"
        noted = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        return [each for each in noted if not programs or each["program"] in programs]

    def words(self, *programs: str) -> list[list[str]]:
        """Return the words of the calls so far, the program first."""
        return [[each["program"], *each["words"]] for each in self.calls(*programs)]

    def run(self, *args: str, env: Mapping[str, str | None] | None = None) -> Result:
        """Run a command of `ollampi slurm`."""
        return CliRunner().invoke(main, ["slurm", *args], env={**self.environ, **(env or {})})


def row(job_id: str, state: str = "RUNNING", **changes: str) -> str:
    """Return a line as squeue writes it."""
    fields = {"elapsed": "1:23", "limit": "1:00:00", "start": "2026-01-02T03:04:05", "nodes": "n[1-2]"}
    fields |= {"reason": "None", "comment": "ollampi", "name": "ollampi"} | changes
    return "|".join([job_id, state, *fields.values()]) + "\n"


def an_endpoint(job_id: str = "100", **changes: Any) -> Endpoint:
    """Return the endpoint of a job."""
    values = {"url": f"http://n1:47{job_id[-2:]}", "job_id": job_id, "name": "ollampi", "token": "very secret"}
    values |= {"host": "n1", "port": 4711, "ranks": 2, "model": "demo", "started": "2026-01-02T03:04:05+00:00"}
    return Endpoint(**(values | changes))  # type: ignore[arg-type]
