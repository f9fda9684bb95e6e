"""Ask a running job about its cluster, by HTTP and by commands."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

from support.servers import Server

AT = "/api/cluster"


def ask(job: Server, method: str, path: str, body: Any = None) -> Any:
    """Return what a request is answered, which must be 200."""
    status, answer = job.request(method, path, body)
    assert status == 200, answer
    return answer


def run(job: Server, *arguments: str, status: int = 0) -> str:
    """Return what a command prints, or its error."""
    env = {**os.environ, "OLLAMA_HOST": f"127.0.0.1:{job.port}"}
    line = [sys.executable, "-m", "ollampi", *arguments]
    done = subprocess.run(line, env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == status, (done.stdout, done.stderr)
    return done.stderr if status else done.stdout
