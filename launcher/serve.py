"""Run one rank of a server: `python -m ollampi.launcher.serve [key=value ...]`, on every rank alike."""

from __future__ import annotations

import gc
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NoReturn

from ollampi.launcher import assemble
from ollampi.launcher.banner import banner, exposure, url
from ollampi.launcher.config import compose_config
from ollampi.launcher.lost import Lost
from ollampi.launcher.process import on_signals, print_failure
from ollampi.launcher.progress import Progress, on_terminal
from ollampi.launcher.schema import Config
from ollampi.mpiruntime.agreement import agree
from ollampi.mpiruntime.communicator import Communicator, Single
from ollampi.mpiruntime.engine import DRAIN, END, Engine
from ollampi.mpiruntime.errors import OllampiError, WorldError
from ollampi.mpiruntime.hosted import Models
from ollampi.mpiruntime.inbox import SocketInbox
from ollampi.mpiruntime.interface import check_interface
from ollampi.mpiruntime.lifetime import die_with
from ollampi.mpiruntime.mpi import Mpi, launched_size
from ollampi.mpiruntime.runner import Runner
from ollampi.mpiruntime.step import Stop

_FRONT_GRACE_S = 1.5
_SIGNALS = {signal.SIGINT: END, signal.SIGTERM: END, signal.SIGUSR1: DRAIN}


@dataclass(frozen=True)
class _Doors:
    """What rank 0 has open to the outside."""

    listener: socket.socket
    inbox: SocketInbox
    front: subprocess.Popen[bytes]

    def watch(self) -> None:
        """Raise OllampiError where the HTTP process has ended by itself."""
        status = self.front.poll()
        if status is not None:
            raise OllampiError(f"the HTTP process ended with status {status}; its messages are above")

    def close(self) -> None:
        """Send what is queued, then end the HTTP process."""
        self.inbox.close()
        self.front.terminate()
        try:
            self.front.wait(_FRONT_GRACE_S)
        except subprocess.TimeoutExpired:
            self.front.kill()
            self.front.wait()


def main() -> None:
    """Serve until the job is told to end; the exit status is 1 where it could not start."""
    if launched_size(os.environ) is not None:
        die_with(os.getppid())
    composed = compose(sys.argv[1:])
    try:
        comm = assemble.communicator(composed.interface)
    except WorldError as e:
        sys.exit(f"ollampi: {e}")
    try:
        status = run_rank(comm, composed.config)
        _leave(comm)
    except BaseException:
        print_failure(comm.rank)
        _abort(comm)
        raise
    sys.exit(0 if comm.rank else status)  # where several ranks end with 1 at a time, prterun may report 213 instead


@dataclass(frozen=True)
class Composed:
    """The configuration, composed before MPI starts, since MPI reads the interface then.

    config: returns it, or raises OllampiError, once all ranks can agree on that.
    """

    interface: str | None
    config: Callable[[], Config]


def compose(overrides: list[str]) -> Composed:
    """Return the configuration of this rank, or what raises why there is none. Before MPI starts."""
    try:
        config = compose_config(overrides, os.environ)
    except OllampiError as e:
        return Composed(None, partial(_refuse, e))
    return Composed(config.exchange.interface, lambda: _checked(config))


def _refuse(error: OllampiError) -> NoReturn:
    raise error


def _checked(config: Config) -> Config:
    """Return the configuration; raise ConfigError where this host does not have what it names."""
    if config.exchange.interface is not None:
        check_interface(config.exchange.interface)
    return config


def run_rank(comm: Communicator, composed: Callable[[], Config]) -> int:
    """Return the exit status of a rank that served or, with 1, was refused; collective.

    composed: returns the configuration or raises OllampiError.
    What a user can mend is agreed on by all ranks and printed once. Anything else is raised.
    """
    on_signals({number: partial(comm.notify, note) for number, note in _SIGNALS.items()})
    try:
        config = agree(comm, composed)
        lost = Lost(comm)
        runner, exchange = assemble.runner(comm, config, lost)
        doors = agree(comm, lambda: _open(config) if comm.rank == 0 else None)
        if config.pin:  # this thread and those that it makes from now on, to compute; not what rank 0 has opened
            os.sched_setaffinity(0, runner.facts[comm.rank].cores)
        if doors is None:
            runner.follow()
        else:
            lost.farewell = doors.inbox.abandon
            library = comm.library if isinstance(comm, Mpi) else "no MPI"
            _coordinate(config, runner, doors, library, exchange)
    except OllampiError as e:
        if comm.rank == 0:
            _announce(str(e))
        return 1
    return 0


def _open(config: Config) -> _Doors:
    """Open what rank 0 has: the port first, since it is the likeliest to be refused."""
    listener = assemble.listen(config)
    inbox = assemble.inbox()
    return _Doors(listener, inbox, assemble.front(config, listener, inbox.address))


def _coordinate(config: Config, runner: Runner, doors: _Doors, library: str, exchange: str) -> None:
    """Load the model, print the banner, serve until told to end. Rank 0 only; the others follow."""
    models = Models(runner, config.engine, config.exchange.synchronization_points, config.cluster)
    progress = Progress(_write, on_terminal(sys.stderr, os.environ))
    runner.announce, runner.progress = _announce, progress
    try:
        draft = assemble.find_model(config, config.draft) if config.draft else None
        hosted = models.pin(assemble.find_adapted(config), draft)
        hosted.keep(None)
        warning = exposure(doors.listener, config.server.keys is not None)
        address = url(doors.listener)
        print(banner(hosted, runner.facts, library, exchange, runner.choice, address, warning), flush=True)
        progress.moving = False  # from now on others write too
        gc.freeze()  # what starting made stays: collections between steps need not look through it
        Engine(runner, models, doors.inbox, config.drain_timeout_s, supervise=doors.watch, announce=_announce).run()
    except OllampiError:
        runner.lead(Stop())
        raise
    finally:
        doors.close()


def _announce(line: str) -> None:
    """Print a line to the operator."""
    _write(f"ollampi: {line}\n")


def _write(text: str) -> None:
    print(text, end="", file=sys.stderr, flush=True)


def _leave(comm: Mpi | Single) -> None:
    """Leave MPI in order; a second signal finds nothing to interrupt any more."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    if isinstance(comm, Mpi):
        comm.finish()


def _abort(comm: Mpi | Single) -> None:
    """End all ranks now."""
    if isinstance(comm, Mpi):
        comm.abort(1)


if __name__ == "__main__":
    main()
