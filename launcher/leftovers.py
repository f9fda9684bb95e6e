"""Remove what ranks leave behind that were killed: shared memory that nobody maps, and folders of mpirun."""

from __future__ import annotations

import os
import shutil
import stat
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

_SHM = Path("/dev/shm")
_KINDS = ("mpich_shm_", "sm_segment.", "vader_segment.", "ucx_shm_", "ollampi-")  # of MPI libraries, and our own
_YOUNG_S = 5.0  # a job that starts beside this one makes its memory before it maps it


class Leftovers:
    """What came into the folder of shared memory after this object was made; nothing older is touched."""

    def __init__(self, folder: Path = _SHM, young_s: float = _YOUNG_S) -> None:
        self._folder = folder
        self._young_s = young_s
        self._before = self._names()

    def sweep(self) -> list[str]:
        """Remove the files of this user that no process maps; return their names."""
        found = {name for name in self._names() - self._before if self._is_ours(self._folder / name)}
        gone = sorted(found - _mapped(self._folder)) if found else []
        for name in gone:
            with suppress(OSError):
                (self._folder / name).unlink()
        return gone

    def _names(self) -> set[str]:
        with suppress(OSError):
            return {name for name in os.listdir(self._folder) if name.startswith(_KINDS)}
        return set()

    def _is_ours(self, path: Path) -> bool:
        """Return whether this user owns a plain file that is not just being made."""
        try:
            status = path.lstat()
        except OSError:
            return False
        is_old = time.time() - status.st_mtime >= self._young_s
        return stat.S_ISREG(status.st_mode) and status.st_uid == os.getuid() and is_old


def remove_session(pid: int, environ: Mapping[str, str]) -> None:
    """Remove the folder that Open MPI's mpirun with this pid, which has ended, made for itself."""
    parent = next((environ[name] for name in ("TMPDIR", "TEMP", "TMP") if environ.get(name)), "/tmp")
    folder = Path(parent) / f"ompi.{pid}"
    with suppress(OSError):
        status = folder.lstat()
        if stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid():
            shutil.rmtree(folder, ignore_errors=True)


def _mapped(folder: Path) -> set[str]:
    """Return the names of a folder's files that a process maps or has open; others' processes cannot have ours."""
    names = set()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with suppress(OSError):
            for line in (entry / "maps").read_text(errors="replace").splitlines():
                path = line.partition("/")[2]
                if path and Path(f"/{path}").parent == folder:
                    names.add(Path(path.removesuffix(" (deleted)")).name)
        with suppress(OSError):
            for file in (entry / "fd").iterdir():
                with suppress(OSError):
                    target = Path(os.readlink(file))
                    names |= {target.name} if target.parent == folder else set()
    return names
