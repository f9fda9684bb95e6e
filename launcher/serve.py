"""Run one rank of a server: `python -m ollampi.launcher.serve [key=value ...]`, on every rank alike."""

from __future__ import annotations

import gc
import json
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import NoReturn

from ollampi.launcher import assemble
from ollampi.launcher.banner import KEY_HEADER, banner, exposure
from ollampi.launcher.config import compose_given
from ollampi.launcher.doors import Doors, KeptDoors, OwnDoors
from ollampi.launcher.given import given
from ollampi.launcher.http_process import listen, start_front, url
from ollampi.launcher.keeper_link import KeeperLink, is_kept
from ollampi.launcher.lost import Lost
from ollampi.launcher.process import on_signals, print_failure
from ollampi.launcher.progress import Progress, on_terminal
from ollampi.launcher.schema import Config
from ollampi.launcher.sharing import shared
from ollampi.launcher.starting import Starting
from ollampi.mpiruntime.agreement import agree
from ollampi.mpiruntime.cluster_view import ClusterView, node_names
from ollampi.mpiruntime.communicator import Communicator, Single
from ollampi.mpiruntime.ending import DRAIN, END
from ollampi.mpiruntime.engine import Engine
from ollampi.mpiruntime.errors import ConfigError, OllampiError, WorldError
from ollampi.mpiruntime.exchange_settings import ExchangeSettings
from ollampi.mpiruntime.hosted import Models
from ollampi.mpiruntime.interface import check_interface
from ollampi.mpiruntime.lifetime import die_with
from ollampi.mpiruntime.log_files import OWN, check_folder, in_files, open_logs, parts
from ollampi.mpiruntime.mpi import Mpi, launched_size
from ollampi.mpiruntime.runner import Runner
from ollampi.mpiruntime.step import Stop

_log = logging.getLogger(f"{OWN}.launcher.serve")  # __name__ is that of a program here
_SIGNALS = {signal.SIGINT: END, signal.SIGTERM: END, signal.SIGUSR1: DRAIN}


def main() -> None:
    """Serve until the job is told to end; the exit status is 1 where it could not start."""
    if (size := launched_size(os.environ)) is not None:
        die_with(os.getppid())
    composed = compose(sys.argv[1:])
    starting = Starting(composed.timeout_s) if size is not None and size > 1 else None
    begun = starting.over if starting is not None else lambda: None
    try:
        comm = assemble.communicator(composed.interface)
    except WorldError as e:
        begun()
        sys.exit(f"ollampi: {e}")
    try:
        status = run_rank(comm, composed.config, composed.warnings, begun)
        begun()
        _leave(comm)
    except BaseException:
        print_failure(comm.rank)
        _abort(comm)
        raise
    sys.exit(0 if comm.rank else status)  # where several ranks end with 1 at a time, prterun may report 213 instead


@dataclass(frozen=True)
class Composed:
    """The configuration, composed before MPI starts, since MPI reads the interface then.

    timeout_s: how long a rank is waited for that does not come. config: returns it, or raises OllampiError, once all
    ranks can agree on that; warnings: what means nothing here.
    """

    interface: str | None
    timeout_s: float
    config: Callable[[], Config]
    warnings: Sequence[str] = ()


def compose(overrides: list[str]) -> Composed:
    """Return the configuration of this rank, or what raises why there is none. Before MPI starts."""
    try:
        found = given(overrides, os.environ)
        config = compose_given(found)
    except OllampiError as e:
        return Composed(None, ExchangeSettings().timeout_s, partial(_refuse, e))
    return Composed(config.exchange.interface, config.exchange.timeout_s, lambda: _checked(config), found.warnings)


def _prepare(comm: Communicator, config: Config) -> None:
    """Open the logs of this rank; raise ConfigError where they cannot be written, or there shall be one rank."""
    if comm.size > 1 and not config.cluster.enabled:
        raise ConfigError(f"cluster.enabled is false, and there are {comm.size} ranks; start one, or set it to true")
    open_logs(config.logging, parts(comm.rank))
    if comm.rank == 0:
        check_folder(config.logging)
    _log.info("rank %d of %d begins: process %d on %s", comm.rank, comm.size, os.getpid(), socket.gethostname())


def _refuse(error: OllampiError) -> NoReturn:
    raise error


def _checked(config: Config) -> Config:
    """Return the configuration; raise ConfigError where this host does not have what it names."""
    if config.exchange.interface is not None:
        check_interface(config.exchange.interface)
    return config


def run_rank(
    comm: Communicator,
    composed: Callable[[], Config],
    warnings: Sequence[str] = (),
    watched: Callable[[], None] = lambda: None,
) -> int:
    """Return the exit status of a rank that served or, with 1, was refused; collective.

    composed: returns the configuration or raises OllampiError; warnings: what rank 0 prints first; watched: called
    once this rank's watchdog has begun.
    What a user can mend is agreed on by all ranks and printed once. Anything else is raised.
    """
    on_signals({number: partial(comm.notify, note) for number, note in _SIGNALS.items()})
    try:
        config = shared(comm, agree(comm, composed))
        agree(comm, lambda: _prepare(comm, config))
        for warning in warnings if comm.rank == 0 else ():
            _announce(warning)
        lost = Lost(comm, "it is being started again" if is_kept(os.environ) else "it must be started again")
        runner, exchange = assemble.runner(comm, config, lost, watched)
        with runner.place.where.during("the opening of the port"):
            doors = agree(comm, lambda: _open(config, runner) if comm.rank == 0 else None)
            named = comm.collect(json.dumps(config.cluster.node_name).encode())
        if config.pin:  # this thread and those that it makes from now on, to compute; not what rank 0 has opened
            os.sched_setaffinity(0, runner.facts[comm.rank].cores)
        if doors is None:
            runner.follow()
        else:
            lost.farewell = doors.inbox.abandon
            library = comm.library if isinstance(comm, Mpi) else "no MPI"
            _coordinate(config, runner, doors, library, exchange, [json.loads(name) for name in named])
    except OllampiError as e:
        if comm.rank == 0:
            _announce(str(e))
        return 1
    return 0


def _open(config: Config, runner: Runner) -> Doors:
    """Open what rank 0 has: the port first, since it is the likeliest to be refused, unless a keeper has it."""
    if is_kept(os.environ):
        inbox = assemble.inbox(runner)
        return KeptDoors(KeeperLink(inbox.address, os.environ), inbox)
    listener = listen(config)
    inbox = assemble.inbox(runner)
    return OwnDoors(listener, inbox, start_front(config, listener, inbox.address))


def _coordinate(
    config: Config, runner: Runner, doors: Doors, library: str, exchange: str, names: list[str | None]
) -> None:
    """Load the model, print the banner, serve until told to end. Rank 0 only; the others follow.

    names: what cluster.node_name is on each rank.
    """
    models = Models(runner, config.engine, config.exchange.synchronization_points, config.cluster)
    view = _view(runner, models, doors, names)
    progress, tick = Progress(_write, on_terminal(sys.stderr, os.environ)), runner.progress

    def show(name: str, passed: int, total: int) -> None:
        tick(name, passed, total)
        progress(name, passed, total)

    runner.announce, runner.progress = _announce, show
    try:
        draft = assemble.find_model(config, config.draft) if config.draft else None
        hosted = models.pin(assemble.find_adapted(config), draft)
        hosted.keep(None)
        preload(config, models)
        has_keys, address = config.server.keys is not None, url(doors.bound)
        words = exposure(doors.bound, has_keys), KEY_HEADER if has_keys else ""
        print(banner(hosted, runner.facts, library, exchange, runner.choice, address, *words), flush=True)
        _log.info("serving %s at %s", hosted.ref.name, address)
        progress.moving = False  # from now on others write too
        gc.freeze()  # what starting made stays: collections between steps need not look through it
        supervise, announce = _care(runner, models, doors)
        engine = Engine(runner, models, doors.inbox, config.drain_timeout_s, supervise=supervise, announce=announce)
        view.leaving_s, view.refused = engine.ending.left_s, engine.num_refused
        doors.ready()
        engine.run()
        if engine.ending.wished:
            doors.done()
    except OllampiError:
        runner.lead(Stop())
        raise
    finally:
        doors.close()


def _view(runner: Runner, models: Models, doors: Doors, names: list[str | None]) -> ClusterView:
    """Return what answers how the job is, from now on: also while the first model is being loaded."""
    known = node_names([fact.host for fact in runner.facts], names)
    host, port = doors.bound
    view = ClusterView(runner.facts, models, known, port, os.environ, runner.network, host)
    if (health := runner.health) is not None:
        view.health = lambda: {node.rank: asdict(node) for node in health.nodes()}
    doors.inbox.aside["cluster"] = view.answer
    return view


def _care(runner: Runner, models: Models, doors: Doors) -> tuple[Callable[[], None], Callable[[str], None]]:
    """Return what the engine's loop is to do several times a second, and whom it tells that it begins to end."""
    health = runner.health
    assert health is not None
    health.announce = _announce
    checkup = assemble.checkup(runner, models, health)

    def supervise() -> None:
        """Watch the HTTP process, and test the ranks where it is time."""
        doors.watch()
        health.excuse({rank for model in models.busy() for rank in model.ranks})
        checkup.look()

    def announce(line: str) -> None:
        """Print the line; no new work is taken any more."""
        health.end()
        _announce(line)

    return supervise, announce


def preload(config: Config, models: Models) -> None:
    """Load the models that shall be there from the start and stay; raise ModelError where one cannot."""
    for wanted in config.cluster.preload:
        name = models.preload(assemble.find_model(config, wanted)).ref.name
        _announce(f"{name} is loaded and stays")


def _announce(line: str) -> None:
    """Print a line to the operator; where logs are files, it is there too."""
    _write(f"ollampi: {line}\n")
    if in_files():
        _log.info("%s", line)


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
