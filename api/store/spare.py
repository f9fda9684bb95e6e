"""Keep a small file ready that becomes the store's lock where the disk is full: else nothing could be deleted there."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from ollampi.api.store.files import create_file, temporary_name

SPARE_BYTES = 4096  # with its blocks: what is written over them needs no others


def keep_spare(spare: Path) -> None:
    """Have the file at `spare`, where there is room for it."""
    if spare.exists():
        return
    temporary = temporary_name(spare.parent)
    with contextlib.suppress(OSError):
        try:
            with open(create_file(temporary), "wb") as file:
                file.write(b" " * SPARE_BYTES)
                file.flush()
                os.fsync(file.fileno())
            os.rename(temporary, spare)
        finally:
            temporary.unlink(missing_ok=True)


def take_spare(spare: Path, temporary: Path) -> int:
    """Return the spare file's descriptor, under a name that only this process knows; raise OSError without one."""
    os.rename(spare, temporary)  # of several that want it, one gets it
    fd = os.open(temporary, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    os.utime(fd)
    return fd
