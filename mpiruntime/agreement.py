"""Go on only where all ranks can."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from ollampi.mpiruntime.communicator import Communicator
from ollampi.mpiruntime.errors import OllampiError

T = TypeVar("T")


def agree(
    comm: Communicator, work: Callable[[], T], kind: type[OllampiError] = OllampiError, number: int | None = None
) -> T:
    """Return what `work` returns on this rank; collective. number: of this rank where `comm` has others than the world.

    Where it raises an OllampiError or OSError, or memory runs out, on any rank, raise `kind` with the first such rank's
    message on all ranks. Any other exception is a defect and passes through.
    """
    result, error = attempt(comm.rank if number is None else number, work)
    failed = [m for m in comm.collect(error.encode()) if m]
    if failed:
        raise kind(failed[0].decode())
    return result  # type: ignore[return-value]


def attempt(rank: int, work: Callable[[], T]) -> tuple[T | None, str]:
    """Return what `work` returns and "", or None and why it cannot be had on this rank, which a user can mend.

    That is where it raises an OllampiError or OSError, or memory runs out. Any other exception passes through.
    """
    try:
        return work(), ""
    except OllampiError as e:
        error = str(e)
    except OSError as e:
        error = f"rank {rank}: {e}"
    except MemoryError:
        error = f"rank {rank} is out of memory"
    except RuntimeError as e:
        if "allocate" not in str(e):  # how torch words it
            raise
        error = f"rank {rank}: {e}"
    return None, error.encode(errors="backslashreplace").decode()  # names of files may be no Unicode
