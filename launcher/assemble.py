"""Build the objects of a rank from the configuration; the only file that names concrete classes."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from ollampi.api.errors import ApiError
from ollampi.api.known_tokenizers import check_tokenizer
from ollampi.api.model import read_model
from ollampi.api.store.catalog import Store
from ollampi.api.store.local import LocalStore
from ollampi.kernels.choice import NATIVE
from ollampi.launcher.home import cache_folder, store_root
from ollampi.launcher.http_process import model_folders
from ollampi.launcher.lost import Lost
from ollampi.launcher.model_path import model_path, no_model, served_name
from ollampi.launcher.schema import Config
from ollampi.launcher.stalled import LoadWatch
from ollampi.mpiruntime.agreement import agree
from ollampi.mpiruntime.checkup import Checkup
from ollampi.mpiruntime.communicator import Communicator, Single
from ollampi.mpiruntime.cost_fit import fit_key, read_fit
from ollampi.mpiruntime.devices import CPU, CudaGpus, place
from ollampi.mpiruntime.errors import ModelError
from ollampi.mpiruntime.exchange import Exchange, choose_exchange
from ollampi.mpiruntime.exchange_settings import ExchangeSettings
from ollampi.mpiruntime.gpu_exchange import can_record, choose_gpu_exchange
from ollampi.mpiruntime.group_maker import GroupMaker
from ollampi.mpiruntime.groups import Groups
from ollampi.mpiruntime.health import Health
from ollampi.mpiruntime.heap import keep_buffers
from ollampi.mpiruntime.heartbeat import Heart
from ollampi.mpiruntime.hosted import Models
from ollampi.mpiruntime.inbox import SocketInbox
from ollampi.mpiruntime.kernel_choice import choose_kernels
from ollampi.mpiruntime.logged import Logged
from ollampi.mpiruntime.mpi import Mpi, launched_size, prepare, start
from ollampi.mpiruntime.network_figures import measure_network
from ollampi.mpiruntime.placement import placement
from ollampi.mpiruntime.reading_rate import measure_rates
from ollampi.mpiruntime.request import ModelRef
from ollampi.mpiruntime.runner import Runner
from ollampi.mpiruntime.trace import Trace, check_path
from ollampi.mpiruntime.vitals import Vitals
from ollampi.mpiruntime.watchdog import LONGEST_S, Place, Watchdog
from ollampi.mpiruntime.watched import Watched
from ollampi.mpiruntime.world import RankFacts, apart, crowded, survey


def communicator(interface: str | None = None) -> Mpi | Single:
    """Return the communicator of this process's world: MPI's under a launcher, else a world of one.

    interface: the network that MPI shall use between hosts.
    """
    size = launched_size(os.environ)
    if size is None:
        return Single()
    prepare(os.environ, interface)
    return start(size)


def runner(
    comm: Communicator, config: Config, lost: Lost | None = None, watched: Callable[[], None] = lambda: None
) -> tuple[Runner, str]:
    """Return the runner of this rank with its share of the cores, and how the ranks exchange tensors; collective.

    lost: what is called where a rank is missing; by default it only ends the job. watched: called once the watchdogs
    of all ranks have begun. Raise ConfigError on all ranks where rank 0 cannot write the trace that is wanted, or the
    exchange cannot be had.
    """
    facts = apart(survey(comm)) if config.pin else survey(comm)
    lost = lost or Lost(comm)
    dog = _watchdog(comm, [fact.host for fact in facts], config, lost)
    where = Place() if dog is None else dog.place
    watched()
    idle = Place() if dog is None else dog.idle
    with where.during("the preparation of the exchange"):
        made, told = _prepared(comm, config, facts, dog, where, idle)
    if config.engine.load_timeout_s is not None:
        loads = LoadWatch(config.engine.load_timeout_s, lost)
        made.while_reading, made.progress = loads.watching, loads.tick
    _give_heart(comm, made, config, (where, idle), dog)
    return made, told


def _prepared(
    comm: Communicator, config: Config, facts: list[RankFacts], dog: Watchdog | None, where: Place, idle: Place
) -> tuple[Runner, str]:
    """Return what `runner` does, with a watchdog that looks at `where` and `idle`; collective."""
    path = None if config.trace is None else Path(os.path.abspath(os.path.expanduser(config.trace)))
    agree(comm, lambda: check_path(path) if path and comm.rank == 0 else None)
    keep_buffers()
    threads = config.threads or facts[comm.rank].threads
    torch.set_num_threads(threads)
    facts = place(comm, facts, config.device, CudaGpus())
    settings = replace(config.exchange, communication_strategy="none") if config.deterministic else config.exchange
    exchange = _exchange(comm, facts, settings, crowded(facts, comm.rank, threads))
    network = measure_network(comm, facts, 2 * settings.timeout_s)
    fitted = read_fit(cache_folder(os.environ), fit_key(config.quantize, config.dtype))
    rates = measure_rates(comm, facts, exchange.timed, fitted)
    on_cpu = facts[comm.rank].device == CPU
    choice = choose_kernels(exchange.comm, cache_folder(os.environ)) if on_cpu else NATIVE
    traced = None if path is None else Trace(path)
    exact, sums = _seen(config, exchange.comm, where, idle), _seen(config, exchange.sums, where, idle)
    made = Runner(exact, facts, traced, choice, sums, settings.overlap)
    made.place = placement(facts[comm.rank], can_record(exchange), where)
    made.network, made.rates, made.replies.where = network, rates, idle
    around = partial(_seen, config)
    group_of = GroupMaker(comm, facts, settings, crowded(facts, comm.rank, threads), exchange, dog, around)
    made.groups = Groups(made.groups.world, group_of)
    return made, exchange.told


def _seen(config: Config, comm: Communicator, where: Place, idle: Place | None = None) -> Communicator:
    """Return a communicator that says in `where` what it waits for, and logs what it does where that is wanted."""
    watched = Watched(comm, where, idle)
    return Logged(watched) if config.logging.network else watched


def _exchange(comm: Communicator, facts: list[RankFacts], settings: ExchangeSettings, crowded: bool) -> Exchange:
    """Return how the ranks exchange tensors; collective. Raise ConfigError on all ranks where it cannot be had."""
    if facts[comm.rank].device == CPU and settings.link != "nccl":
        return choose_exchange(comm, facts, settings, crowded)
    inner = replace(settings, link="auto") if settings.link == "nccl" else settings
    return choose_gpu_exchange(comm, facts, settings, lambda: choose_exchange(comm, facts, inner, crowded))


def _watchdog(comm: Communicator, hosts: list[str], config: Config, lost: Lost) -> Watchdog | None:
    """Return the watchdog of this rank, which has begun; it calls `lost` where a rank is missing. Collective.

    None, on all ranks, where MPI serves no threads or the rank is alone.
    """
    if not isinstance(comm, Mpi) or comm.size == 1 or (post := comm.post()) is None:
        return None
    longest_s = min(LONGEST_S, config.cluster.heartbeat_interval / 4)
    dog = Watchdog(post, hosts, config.exchange.timeout_s, lost, longest_s)
    dog.start()
    comm.on_finish(dog.stop)
    return dog


def _give_heart(
    comm: Communicator, made: Runner, config: Config, places: tuple[Place, Place], dog: Watchdog | None
) -> None:
    """Let this rank tell rank 0 how it is from now on, which keeps it in the `health` of its runner.

    places: where it says that it waits for other ranks, and for messages. The watchdog's thread does it; without one
    rank 0 knows of itself alone, when it is asked.
    """
    interval_s = config.cluster.heartbeat_interval
    health = _health(comm, made, config, places, dog is not None) if comm.rank == 0 else None
    vitals, made.health = Vitals(made.meters, made.activity, places[0]), health
    if dog is not None:
        if health is not None:
            dog.heard = lambda rank, beat: health.take(rank, beat, time.monotonic())
        dog.beside = Heart(interval_s, vitals, partial(dog.tell, 0), health).look
    elif health is not None:
        health.refresh = Heart(interval_s, vitals, lambda beat: None, health).look


def _health(comm: Communicator, made: Runner, config: Config, places: tuple[Place, Place], beats: bool) -> Health:
    """Return what rank 0 knows of all ranks; beats: whether the others tell it anything."""
    settings = config.cluster
    interval_s, timeout_s = settings.heartbeat_interval, settings.node_timeout
    health = Health(comm.size, interval_s, timeout_s, settings.health_check_interval, beats)

    def waits() -> tuple[bool, int]:
        """Return whether rank 0 waits for others or loads, and a number that grows with what it does."""
        busy = any(place.what for place in places) or made.activity.doing == "load"
        return busy, sum(place.turn for place in places)

    health.waits = waits
    return health


def checkup(runner: Runner, models: Models, health: Health) -> Checkup:
    """Return what has the ranks test themselves while there is nothing else to do. Rank 0 only."""
    return Checkup(runner, models, health, time.monotonic)


def find_model(config: Config, given: str) -> ModelRef:
    """Return a model by name or path; raise ModelError or ConfigError where there is none or its tokenizer is none."""
    root = store_root(config.store, os.environ)
    store = Store(model_folders(config), None if root is None else LocalStore(root))
    own = model_path(given)
    try:
        model = store.find(given) if own is None else read_model(served_name(own), own)
        check_tokenizer(model)  # the HTTP process makes its own with the first request, which is late to be refused
        return model.ref
    except ApiError as e:
        raise ModelError(no_model(given, [model.full_name for model in store.models()])) from e


def find_adapted(config: Config) -> ModelRef:
    """Return the model that the server is started for, with its own adapters and those of the configuration.

    Raise ModelError or ConfigError.
    """
    folders = tuple(os.path.abspath(os.path.expanduser(folder)) for folder in config.adapter)
    ref = find_model(config, config.model)
    return replace(ref, adapters=(*ref.adapters, *folders))


def inbox(runner: Runner) -> SocketInbox:
    """Return the coordinator's inbox at an address that nobody can guess and that leaves no file behind."""
    made = SocketInbox(f"unix:@ollampi-{os.getpid()}-{secrets.token_hex(8)}")
    if (health := runner.health) is not None:
        made.aside["readiness"] = lambda client, message: client.post(health.answer(message))
    return made
