"""Know every setting, and read the value of one.

Imports nothing heavy, so that `ollampi launch` can check a command line before it starts anything.
"""

import json

from ollampi.launcher.kinds import Choice, Flag, Kind, Number, Span, Text, Texts, Value
from ollampi.mpiruntime.errors import ConfigError, quoted, short
from ollampi.mpiruntime.log_files import LEVELS

_DTYPE = Choice(
    ("auto", "float32", "bfloat16"),
    "float16 weights are read as either: bfloat16 takes half the memory, float32 loses nothing; auto takes bfloat16",
)
_CACHE_DTYPE = Choice(
    ("auto", "float32", "bfloat16", "int8"),
    "auto takes the model's; int8 takes half the memory of bfloat16 for slightly less exact answers",
)
_QUANTIZE = Choice(
    ("auto", "none", "q8", "q4"),
    "q8 takes 8.5 bits for each weight and loses next to nothing, q4 4.5 bits and loses a little; none takes plain"
    " numbers, auto what the checkpoint has",
)
_CACHE = Text("the path of a folder that keeps quantised weights and those that are streamed, or null", or_null=True)
_DEVICE = Choice(
    ("auto", "cpu", "cuda"),
    "cuda computes on GPUs, one for each rank where there are enough; auto does where ranks see some",
)
_PREFETCH = Number(int, 0, 64)
_STREAM = Choice(
    ("auto", "never", "always"),
    "whether layers are read again in every step from a file in the folder of cache; auto: those for which there is no"
    " memory",
)
_LINK = Choice(
    ("auto", "shared", "mpi", "nccl"),
    "shared adds up through memory that the ranks of one host share, mpi through MPI, nccl between GPUs; auto takes"
    " what is faster at the start",
)
_STRATEGY = Choice(
    ("auto", "none", "compressed"),
    "compressed sends sums in fewer bits, none never does; auto does where a measurement says that it pays",
)
_POINTS = Choice(
    ("all", "attention_only"),
    "all adds up behind attention and behind the MLP, attention_only once in a layer, approximate for most models",
)
_OVERLAP = Choice(
    ("auto", "always", "never"),
    "always computes long steps in halves, one of which is exchanged meanwhile; auto the faster way between hosts",
)
_EXPERTS = Choice(("cut", "spread"), "of a mixture: a part of each expert on every rank, or some experts whole on each")
_LOAD = Choice(
    ("slices", "scatter"),
    "each rank reads its part of the files, or rank 0 reads for all, where many readers make a file system slow",
)
_ROLE = Choice(
    ("auto", "coordinator", "worker", "mixed"),
    "of rank 0: mixed computes too, coordinator does not; other ranks are workers; auto: mixed",
)
_BALANCING = Choice(
    ("least_connections", "round_robin", "random", "prefix_aware"), "which replica of a model a request goes to"
)
_LEVEL = Choice(("auto", *LEVELS), "auto: info in a folder, warning on stderr")
SETTINGS: dict[str, Kind] = {
    "model": Text("the name of a model or the path of its folder"),
    "model_folders": Texts("the path of a folder, or several in brackets: [/a,/b]"),
    "store": Text("the path of the folder that holds manifests and blobs, or null", or_null=True),
    "draft": Text("the name of a model or the path of its folder, or null", or_null=True),
    "adapter": Texts("the path of a folder, or several in brackets: [/a,/b]"),
    "device": _DEVICE,
    "dtype": _DTYPE,
    "quantize": _QUANTIZE,
    "cache": _CACHE,
    "stream": _STREAM,
    "load": _LOAD,
    "experts": _EXPERTS,
    "deterministic": Flag(),
    "drain_timeout_s": Span(0, 86400),
    "threads": Number(int, 1, 1024, or_null=True),
    "pin": Flag(),
    "exchange.link": _LINK,
    "exchange.interface": Text("the name of a network interface, or null", or_null=True),
    "exchange.communication_strategy": _STRATEGY,
    "exchange.compression_level": Number(int, 0, 4, note="0 fp32, 1 bf16, 2 int8, 3 fp8, 4 int4"),
    "exchange.synchronization_points": _POINTS,
    "exchange.prefetch_factor": _PREFETCH,
    "exchange.overlap": _OVERLAP,
    "exchange.timeout_s": Span(0.1, 86400),
    "exchange.table": Text("the path of a file, or null", or_null=True),
    "trace": Text("the path of a file to write, or null", or_null=True),
    "cluster.enabled": Flag(),
    "cluster.node_name": Text("a name for this node, or null", or_null=True),
    "cluster.node_role": _ROLE,
    "cluster.load_balancing": _BALANCING,
    "cluster.heartbeat_interval": Span(0.05, 3600),
    "cluster.node_timeout": Span(0.1, 86400),
    "cluster.health_check_interval": Span(0.1, 86400, or_zero=True),
    "cluster.preload": Texts("the name of a model or the path of its folder, or several in brackets: [a,b]"),
    "logging.folder": Text("the path of a folder, or null", or_null=True),
    "logging.format": Choice(("text", "json"), "json writes one object in each line"),
    "logging.level": _LEVEL,
    "logging.max_bytes": Number(int, 1024, 2**40),
    "logging.files": Number(int, 2, 1000),
    "logging.network": Flag(),
    "server.host": Text("an address of this host"),
    "server.port": Number(int, 0, 65535),
    "server.threads": Number(int, 1, 4096),
    "server.origins": Texts("an origin, or several in brackets: [http://a,http://b]"),
    "server.hosts": Texts("a name of this host, or several in brackets: [a.example,b.example]; * is any name"),
    "server.keys": Text("the path of a file with a line ROLE KEY for each key, or null", or_null=True),
    "server.max_body_bytes": Number(int, 1024, 2**31),
    "server.registries": Texts("a host, perhaps with a port or http:// before it, or several: [a:5000,http://b:11434]"),
    "server.transfer_streams": Number(int, 1, 64),
    "engine.dtype": _DTYPE,
    "engine.context_length": Number(int, 4, 2**24),
    "engine.cache_tokens": Number(int, 16, 2**28, or_null=True),
    "engine.cache_fraction": Number(float, 0.01, 1),
    "engine.cache_dtype": _CACHE_DTYPE,
    "engine.block_size": Number(int, 1, 1024),
    "engine.max_step_tokens": Number(int, 1, 2**16),
    "engine.max_running": Number(int, 1, 2**16),
    "engine.max_stretch": Number(float, 1, 1e6),
    "engine.max_drafts": Number(int, 0, 64, or_null=True),
    "engine.timeout_s": Span(0.001, 1e9, or_null=True),
    "engine.max_queue": Number(int, 0, 2**20),
    "engine.max_loaded_models": Number(int, 1, 64),
    "engine.keep_alive_s": Span(-(2**31), 2**31, or_null=True),
    "engine.load_timeout_s": Span(0.1, 1e9, or_null=True),
    "engine.deterministic": Flag(),
    "engine.quantize": _QUANTIZE,
    "engine.shard_cache": _CACHE,
    "engine.experts": _EXPERTS,
    "engine.load": _LOAD,
    "engine.stream": _STREAM,
    "engine.prefetch_factor": _PREFETCH,
}


def check_setting(path: str, value: Value, name: str, shown: str) -> None:
    """Raise ConfigError with `name` and the value as `shown` where the value does not fit the setting."""
    if not SETTINGS[path].fits(value):
        raise ConfigError(f"{name} is {shown}; it must be {SETTINGS[path].takes}")


def parse_setting(path: str, name: str, text: str) -> Value:
    """Return the value of a setting that was given under `name`; raise ConfigError, also where there is none."""
    if path not in SETTINGS:
        raise ConfigError(unknown(path))
    return parse(SETTINGS[path], name, text)


def typed(path: str, name: str, value: object) -> Value:
    """Return the value of a setting that a file gives as a value of its own; raise ConfigError as `parse` does."""
    kind = SETTINGS[path]
    if isinstance(value, str):
        return parse_text(kind, name, value)
    if isinstance(kind, Texts) and isinstance(value, list) and all(isinstance(part, str) for part in value):
        return [str(part) for part in value]
    if value is None and kind.fits(None) and not isinstance(kind, Texts):
        return None
    is_number = isinstance(value, int | float) and not isinstance(kind, Text | Texts)
    if not is_number or isinstance(value, bool) != isinstance(kind, Flag):
        raise ConfigError(f"{name} is {short(as_text(value))}; it must be {kind.takes}")
    return parse(kind, name, json.dumps(value))


def as_text(value: object) -> str:
    """Return a text as it is, and anything else that a file may hold as JSON, as far as that can be."""
    try:
        return value if isinstance(value, str) else json.dumps(value, default=str)
    except (ValueError, TypeError, RecursionError):  # a list of YAML that holds itself, keys that are no texts
        return repr(value)


def parse_text(kind: Kind, name: str, text: str) -> Value:
    """Return the value of a text; one that stands for itself keeps its quotes. Raise ConfigError as `parse` does."""
    if not isinstance(kind, Text):
        return parse(kind, name, text)
    if not kind.fits(text):
        raise ConfigError(f"{name} is {quoted(text)}; it must be {kind.takes}")
    return text


def parse(kind: Kind, name: str, text: str) -> Value:
    """Return the value of a text that was given for `name`; raise ConfigError with what it takes."""
    try:
        value = kind.parse(text)
    except ValueError as error:
        raise ConfigError(f"{name} is {quoted(text)}; it must be {kind.takes}") from error
    if not kind.fits(value):
        raise ConfigError(
            f"{name} is {short(text) if isinstance(value, int | float) else quoted(text)}; it must be {kind.takes}"
        )
    return value


def unknown(path: str) -> str:
    """Return the message for a path that is no setting: the names on the level at which it goes astray."""
    if group := _names(path):
        return (
            f"{quoted(path)} is a group of settings; set one of them: {', '.join(f'{path}.{name}' for name in group)}"
        )
    where = path.rpartition(".")[0]
    while where and not _names(where) and where not in SETTINGS:
        where = where.rpartition(".")[0]
    meant = " or ".join(_alike(path))
    asked = f"did you mean {meant}? " if meant else ""
    has = f"{short(where) or 'the configuration'} has: {', '.join(_names(where)) or 'no parts'}"
    return f"unknown setting {quoted(path)}; {asked}{has}"


def _alike(path: str) -> list[str]:
    """Return the settings in groups that have the name of a path without one."""
    found: dict[Kind, str] = {}
    for known, kind in SETTINGS.items():
        if known.rpartition(".")[2] == path:
            found.setdefault(kind, known)  # a setting that the engine takes over is here twice
    return list(found.values())


def _names(where: str) -> list[str]:
    """Return the names of the settings and groups right below a group; "" is the whole configuration."""
    start = f"{where}." if where else ""
    return list(dict.fromkeys(path.removeprefix(start).split(".")[0] for path in SETTINGS if path.startswith(start)))
