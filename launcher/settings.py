"""Know every setting: what it takes, and what values a command line and the environment give.

Imports nothing heavy, so that `ollampi launch` can check a command line before it starts anything.
"""

from collections.abc import Mapping, Sequence

from ollampi.launcher.address import parse_address
from ollampi.launcher.kinds import Choice, Flag, Kind, Number, Text, Texts, Value
from ollampi.mpiruntime.errors import ConfigError

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
    ("auto", "coordinator", "mixed"), "of rank 0: mixed computes too, coordinator holds no weights; auto: mixed"
)
_BALANCING = Choice(
    ("least_connections", "round_robin", "random", "prefix_aware"), "which replica of a model a request goes to"
)
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
    "drain_timeout_s": Number(float, 0, 86400),
    "threads": Number(int, 1, 1024, or_null=True),
    "pin": Flag(),
    "cluster.node_role": _ROLE,
    "cluster.load_balancing": _BALANCING,
    "exchange.link": _LINK,
    "exchange.interface": Text("the name of a network interface, or null", or_null=True),
    "exchange.communication_strategy": _STRATEGY,
    "exchange.compression_level": Number(int, 0, 4, note="0 fp32, 1 bf16, 2 int8, 3 fp8, 4 int4"),
    "exchange.synchronization_points": _POINTS,
    "exchange.prefetch_factor": _PREFETCH,
    "exchange.overlap": _OVERLAP,
    "exchange.timeout_s": Number(float, 0.1, 86400),
    "exchange.table": Text("the path of a file, or null", or_null=True),
    "trace": Text("the path of a file to write, or null", or_null=True),
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
    "engine.timeout_s": Number(float, 0.001, 1e9, or_null=True),
    "engine.max_queue": Number(int, 0, 2**20),
    "engine.max_loaded_models": Number(int, 1, 64),
    "engine.keep_alive_s": Number(float, -(2**31), 2**31, or_null=True),
    "engine.deterministic": Flag(),
    "engine.quantize": _QUANTIZE,
    "engine.shard_cache": _CACHE,
    "engine.experts": _EXPERTS,
    "engine.load": _LOAD,
    "engine.stream": _STREAM,
    "engine.prefetch_factor": _PREFETCH,
}
_ENVIRONMENT = {
    "OLLAMA_MODELS": "store",
    "OLLAMA_CONTEXT_LENGTH": "engine.context_length",
    "OLLAMA_MAX_QUEUE": "engine.max_queue",
    "OLLAMA_MAX_LOADED_MODELS": "engine.max_loaded_models",
    "OLLAMA_KV_CACHE_TYPE": "engine.cache_dtype",
    "OLLAMA_MAX_TRANSFER_STREAMS": "server.transfer_streams",
}
_CACHE_TYPES = {"f16": "auto", "q8_0": "int8"}
_ZERO_IS_DEFAULT = ("OLLAMA_CONTEXT_LENGTH", "OLLAMA_MAX_LOADED_MODELS", "OLLAMA_MAX_TRANSFER_STREAMS")


def chosen(overrides: Sequence[str], environ: Mapping[str, str]) -> dict[str, Value]:
    """Return path -> value of the settings that the environment or, before it, the command line gives.

    Raise ConfigError for the first that cannot be used, with its name, its value and what it takes.
    """
    values = _from_environment(environ)
    for override in overrides:
        path, equals, text = override.partition("=")
        if override.startswith("-") or not equals or not path:
            raise ConfigError(f"{override!r} is no setting; write key=value, for example server.port=11500")
        values[path] = _parse(path, path, text)
    return values


def check_setting(path: str, value: Value, name: str, shown: str) -> None:
    """Raise ConfigError with `name` and the value as `shown` where the value does not fit the setting."""
    if not SETTINGS[path].fits(value):
        raise ConfigError(f"{name} is {shown}; it must be {SETTINGS[path].takes}")


def _from_environment(environ: Mapping[str, str]) -> dict[str, Value]:
    """Return the settings that Ollama's environment variables give."""
    given = {name: environ.get(name, "").strip().strip("\"'") for name in (*_ENVIRONMENT, "OLLAMA_HOST")}
    values: dict[str, Value] = {}
    if given["OLLAMA_HOST"]:  # as in Ollama, scheme and path are for clients only
        address = parse_address(given["OLLAMA_HOST"], "OLLAMA_HOST")
        values |= {"server.host": address.host, "server.port": address.port}
    for name, path in _ENVIRONMENT.items():
        if given[name] and not (given[name] == "0" and name in _ZERO_IS_DEFAULT):
            values[path] = _parse(
                path, name, _cache_dtype(given[name]) if path == "engine.cache_dtype" else given[name]
            )
    return values


def _cache_dtype(cache_type: str) -> str:
    """Return the setting for one of Ollama's cache types; raise ConfigError where there is none."""
    if cache_type.lower() not in _CACHE_TYPES:
        raise ConfigError(
            f"OLLAMA_KV_CACHE_TYPE is {cache_type!r}; it must be f16 (engine.cache_dtype=auto, as without it) or q8_0"
            " (engine.cache_dtype=int8)"
        )
    return _CACHE_TYPES[cache_type.lower()]


def _parse(path: str, name: str, text: str) -> Value:
    """Return the value of a setting that was given under `name`."""
    if path not in SETTINGS:
        raise ConfigError(_unknown(path))
    return parse(SETTINGS[path], name, text)


def parse(kind: Kind, name: str, text: str) -> Value:
    """Return the value of a text that was given for `name`; raise ConfigError with what it takes."""
    try:
        value = kind.parse(text)
    except ValueError as error:
        raise ConfigError(f"{name} is {text!r}; it must be {kind.takes}") from error
    if not kind.fits(value):
        raise ConfigError(
            f"{name} is {text if isinstance(value, int | float) else repr(text)}; it must be {kind.takes}"
        )
    return value


def _unknown(path: str) -> str:
    """Return the message for a path that is no setting: the names on the level at which it goes astray."""
    if group := _names(path):
        return f"{path!r} is a group of settings; set one of them: {', '.join(f'{path}.{name}' for name in group)}"
    where = path.rpartition(".")[0]
    while where and not _names(where) and where not in SETTINGS:
        where = where.rpartition(".")[0]
    meant = " or ".join(_alike(path))
    asked = f"did you mean {meant}? " if meant else ""
    has = f"{where or 'the configuration'} has: {', '.join(_names(where)) or 'no parts'}"
    return f"unknown setting {path!r}; {asked}{has}"


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
