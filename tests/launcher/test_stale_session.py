"""An mpirun that was killed left a folder behind, and another one gets its pid: it is not to trip over that."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.kept import SOURCE
from support.servers import free_port, remove_old_sessions

from ollampi.launcher.config import compose_config
from ollampi.launcher.keeper import Keeping, keep
from ollampi.launcher.supervise import supervise

_NEXT = 400  # pids that a process that is started soon may have
_PROGRAM = """
import os, sys
from pathlib import Path
from ollampi.launcher.supervise import becoming_mpirun
folder = Path(sys.argv[1], f"ompi.{os.getpid()}")
folder.mkdir()
becoming_mpirun(os.getppid(), {"TMPDIR": sys.argv[1]})()
sys.exit(folder.exists())
"""


def test_a_process_removes_the_folder_of_its_pid(tmp_path: Path) -> None:
    environ = {**os.environ, "PYTHONPATH": str(SOURCE)}
    assert subprocess.run([sys.executable, "-c", _PROGRAM, str(tmp_path)], env=environ, check=False).returncode == 0


@pytest.mark.parametrize("way", ["launch", "restarts"])
def test_both_ways_to_start_do_so(tmp_path: Path, way: str) -> None:
    with subprocess.Popen(["true"]) as now:
        for pid in range(now.pid, now.pid + _NEXT):
            (tmp_path / f"ompi.{pid}").mkdir()
    line = ["sh", "-c", 'test ! -e "$TMPDIR/ompi.$$" && exit 5']
    environ = {**os.environ, "TMPDIR": str(tmp_path)}
    if way == "launch":
        assert supervise(line, environ) == 5
    else:
        config = compose_config([f"server.port={free_port()}"], {})
        assert keep(lambda number: (line, environ), Keeping(config, 0)) == 5
    assert len(list(tmp_path.iterdir())) < _NEXT


def test_tests_remove_what_others_left(tmp_path: Path) -> None:
    with subprocess.Popen(["true"]) as ended:
        pass
    old, young, alive, other = (tmp_path / f"ompi.{name}" for name in (ended.pid, ended.pid + 1, os.getpid(), "x"))
    for folder in (old, young, alive, other):
        folder.mkdir()
    for folder in (old, alive, other):
        os.utime(folder, (0, 0))
    remove_old_sessions(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted([young, alive, other])
