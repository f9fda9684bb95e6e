"""Test that only what nobody uses any more is removed."""

from __future__ import annotations

import mmap
import os
import time
from pathlib import Path

from ollampi.launcher.leftovers import Leftovers, remove_session


def write(path: Path, age_s: float = 60) -> Path:
    """Write a page into a file, which is so old."""
    path.write_bytes(b"\0" * mmap.PAGESIZE)
    os.utime(path, (time.time() - age_s,) * 2)
    return path


def test_shared_memory_that_nobody_maps_goes(tmp_path: Path) -> None:
    write(tmp_path / "mpich_shm_before")
    leftovers = Leftovers(tmp_path)
    mapped, opened = write(tmp_path / "mpich_shm_mapped"), write(tmp_path / "sm_segment.opened")
    for name in ("mpich_shm_1", "sm_segment.vm.0.1", "vader_segment.vm", "ucx_shm_posix_1", "ollampi-0123"):
        write(tmp_path / name)
    write(tmp_path / "another")
    write(tmp_path / "mpich_shm_young", 0)
    (tmp_path / "mpich_shm_folder").mkdir()
    (tmp_path / "mpich_shm_link").symlink_to(mapped)
    with mapped.open("rb") as file:
        memory = mmap.mmap(file.fileno(), mmap.PAGESIZE, prot=mmap.PROT_READ)
    with memory, opened.open("rb"):
        gone = ["mpich_shm_1", "ollampi-0123", "sm_segment.vm.0.1", "ucx_shm_posix_1", "vader_segment.vm"]
        assert leftovers.sweep() == gone
        assert leftovers.sweep() == []
        assert sorted(os.listdir(tmp_path)) == [
            *["another", "mpich_shm_before", "mpich_shm_folder", "mpich_shm_link", "mpich_shm_mapped"],
            *["mpich_shm_young", "sm_segment.opened"],
        ]
    assert leftovers.sweep() == ["mpich_shm_mapped", "sm_segment.opened"]
    assert Leftovers(tmp_path / "nowhere").sweep() == []


def test_a_name_that_is_no_text_is_borne(tmp_path: Path) -> None:
    """One process of the host that maps such a file must not end a server."""
    odd = write(Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9")))
    leftovers = Leftovers(tmp_path)
    write(tmp_path / "mpich_shm_1")
    with odd.open("rb") as file, mmap.mmap(file.fileno(), mmap.PAGESIZE, prot=mmap.PROT_READ):
        assert leftovers.sweep() == ["mpich_shm_1"]


def test_only_the_folder_of_that_mpirun_goes(tmp_path: Path) -> None:
    for name in ("ompi.7", "ompi.77"):
        (tmp_path / name / "1").mkdir(parents=True)
    (tmp_path / "ompi.8").symlink_to(tmp_path / "ompi.77")
    for pid in (7, 8, 9):
        remove_session(pid, {"TMPDIR": str(tmp_path)})
    assert sorted(os.listdir(tmp_path)) == ["ompi.77", "ompi.8"]
    assert os.listdir(tmp_path / "ompi.77") == ["1"]
