"""Hold what `ollampi doctor` and the ranks that it starts say to each other, without a heavy import."""

from __future__ import annotations

from dataclasses import dataclass

MARK = "@ollampi-doctor "  # what ranks find is JSON behind it, a line each: mpirun prints other lines too
FOLDER_BYTES = 64 << 20  # of the file that each host writes into a shared folder
SUM_BYTES = (8 << 10, 64 << 10, 1 << 20, 16 << 20)  # of all-reduces


@dataclass(frozen=True)
class Wanted:
    """What ranks are to measure.

    limit_s: after which a silent rank is lost; interface: for MPI; host, port: where the server will listen; folder:
    that hosts share; model: a folder or file that each host must have; alone: whether to look at this host without MPI.
    """

    limit_s: float = 30.0
    interface: str | None = None
    host: str = "127.0.0.1"
    port: int = 11434
    folder: str | None = None
    model: str | None = None
    alone: bool = False
