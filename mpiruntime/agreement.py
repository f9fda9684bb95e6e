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
    error, result, name = b"", None, f"rank {comm.rank if number is None else number}"
    try:
        result = work()
    except OllampiError as e:
        error = str(e).encode(errors="backslashreplace")  # names of files may be no Unicode
    except OSError as e:
        error = f"{name}: {e}".encode(errors="backslashreplace")
    except MemoryError:
        error = f"{name} is out of memory".encode()
    except RuntimeError as e:
        if "allocate" not in str(e):  # how torch words it
            raise
        error = f"{name}: {e}".encode(errors="backslashreplace")
    failed = [m for m in comm.collect(error) if m]
    if failed:
        raise kind(failed[0].decode())
    return result  # type: ignore[return-value]
