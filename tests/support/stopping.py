"""Run a rank of a server that stops itself on the way: `stopping.py PLACE RANK [key=value ...]`."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from typing import Any


def stop(*_arguments: Any, **_named: Any) -> None:
    """Stop this process as `kill -STOP` does."""
    os.kill(os.getpid(), signal.SIGSTOP)


def first(action: Callable[..., Any], owner: Any, name: str) -> None:
    """Have something done before a function of a module or class is called."""
    function = getattr(owner, name)

    def both(*arguments: Any, **named: Any) -> Any:
        action()
        return function(*arguments, **named)

    setattr(owner, name, both)


def main() -> None:
    """Serve; the rank that is meant stops at the place that is meant, or hangs before MPI's start."""
    place, rank = sys.argv[1], int(sys.argv[2])
    del sys.argv[1:3]
    own = int(os.environ.get("OMPI_COMM_WORLD_RANK") or os.environ["PMI_RANK"])
    if own == rank and place == "imports":
        stop()
    from ollampi.launcher import assemble, serve
    from ollampi.mpiruntime import exchange
    from ollampi.mpiruntime.runner import Runner

    places = {
        "mpi": (assemble, "start"),
        "measuring": (exchange, "by_host"),
        "port": (serve, "agree"),
        "load": (Runner, "_load_slice"),
    }
    if own == rank and place == "hang":
        first(lambda: time.sleep(1000), *places["mpi"])
    elif own == rank and place == "port":
        runner = assemble.runner

        def prepared(*arguments: Any, **named: Any) -> Any:
            made = runner(*arguments, **named)
            first(stop, *places["port"])
            return made

        assemble.runner = prepared
    elif own == rank and place in places:
        first(stop, *places[place])
    serve.main()


if __name__ == "__main__":
    main()
