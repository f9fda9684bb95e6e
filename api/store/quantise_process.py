"""Have another process convert and quantise weights; how far it is comes line by line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from ollampi.mpiruntime.errors import ModelError

Tell = Callable[[int, int], None]


def convert(source: Path, target: Path, tell: Tell) -> None:
    """Write the GGUF file of a model folder; raise ModelError, OSError, and what `tell` raises, which ends the work."""
    _run(["convert", str(source), str(target)], tell)


def requantise(source: Path, target: Path, level: str, tell: Tell) -> None:
    """Write a GGUF file anew at a level such as q4_K_M; raise as `convert`."""
    _run(["requantise", str(source), str(target), level], tell)


def _run(arguments: list[str], tell: Tell) -> None:
    line = [sys.executable, "-m", "ollampi.mpiruntime.gguf_job", str(os.getpid()), *arguments]
    with subprocess.Popen(line, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            for text in process.stdout:
                said = json.loads(text)
                if isinstance(said, list):
                    tell(*said)
                elif said is None:
                    return
                elif "model" in said:
                    raise ModelError(said["model"])
                else:
                    raise OSError(said["number"], said["text"])
        finally:
            process.kill()
    raise ModelError("the process that writes the weights was killed; see what else runs on this host")
