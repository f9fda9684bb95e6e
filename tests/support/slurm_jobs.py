"""Serve in jobs of the tests' Slurm: submit slurm/serve.sh, wait for its endpoint, ask it, look at its processes."""

from __future__ import annotations

import http.client
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ollampi.launcher import endpoint
from ollampi.launcher.endpoint import Endpoint
from support.servers import READY_S, wait_until
from support.slurmlab import OVER, Slurm

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = str(ROOT / "slurm" / "serve.sh")
STREAM_S = 120.0


@dataclass
class Job:
    """A job that serves, or shall; work: the folder that it was submitted from."""

    slurm: Slurm
    number: int
    work: Path

    @property
    def endpoints(self) -> Path:
        """Return the folder of the endpoint files."""
        return self.work / "endpoints"

    @property
    def log(self) -> str:
        """Return what the job has printed."""
        path = self.work / f"ollampi-{self.number}.log"
        return path.read_text() if path.exists() else ""

    @property
    def state(self) -> str:
        """Return the state that Slurm has for it."""
        return self.slurm.job(self.number)["JobState"]

    def endpoint(self) -> Endpoint | None:
        """Return what the endpoint file says, None where there is none."""
        return endpoint.read(self.endpoints, str(self.number))

    def served(self, after: Endpoint | None = None) -> Endpoint:
        """Return the endpoint once the job serves; after: the one of the start before, which is waited out."""
        wait_until(
            lambda: self.endpoint() not in (None, after) or self.state in OVER, READY_S, f"a server:\n{self.log}"
        )
        found = self.endpoint()
        assert found is not None, self.log
        return found

    def ask(self, found: Endpoint, body: Mapping[str, Any], key: str | None = None) -> http.client.HTTPResponse:
        """Return the answer to POST /api/generate, whose body is still to be read; it closes the connection."""
        connection = http.client.HTTPConnection("127.0.0.1", found.port, timeout=STREAM_S)
        key = found.token if key is None else key
        headers = {"Authorization": f"Bearer {key}", "Connection": "close"}
        try:
            connection.request("POST", "/api/generate", json.dumps(body), headers)
            return connection.getresponse()
        except BaseException:
            connection.close()
            raise

    def answers(self, found: Endpoint) -> bool:
        """Return whether it generates a text now."""
        body = {"model": found.model, "prompt": "import", "raw": True, "stream": False}
        try:
            with self.ask(found, {**body, "options": {"num_predict": 4}}) as response:
                return response.status == 200 and json.loads(response.read())["done"] is True
        except (OSError, http.client.HTTPException):
            return False

    def processes(self) -> list[int]:
        """Return all its processes."""
        return self.slurm.processes(f"SLURM_JOB_ID={self.number}")

    def rank(self, number: int) -> int:
        """Return the process of a rank."""
        here = set(self.processes()) & set(self.slurm.processes(f"PMIX_RANK={number}"))
        found = [pid for pid in here if b"ollampi.launcher.serve" in Path(f"/proc/{pid}/cmdline").read_bytes()]
        assert len(found) == 1
        return found[0]


@contextmanager
def submitted(slurm: Slurm, work: Path, *words: str, environ: Mapping[str, str] | None = None) -> Iterator[Job]:
    """Submit slurm/serve.sh with `words`, options of sbatch and settings, until the block ends; then cancel it."""
    options = [word for word in words if word.startswith("-")]
    settings = [word for word in words if not word.startswith("-")]
    env = {
        "OLLAMPI_PYTHON": sys.executable,
        "PYTHONPATH": str(ROOT / "src"),
        "OLLAMPI_ENDPOINTS": str(work / "endpoints"),
        "OLLAMA_MODELS": str(work / "store"),
        "OMPI_MCA_mpi_yield_when_idle": "1",  # MPI does not know that the nodes share cores
        **(environ or {}),
    }
    job = Job(slurm, slurm.submit(*options, SCRIPT, *settings, environ=env, cwd=work), work)
    try:
        yield job
    finally:
        subprocess.run(["scancel", str(job.number)], env=slurm.environ, check=False, timeout=60)
        slurm.wait(job.number)
        wait_until(lambda: not job.processes(), 60, f"processes {job.processes()} to end")
