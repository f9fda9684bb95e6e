"""List the names that Ollama and its cluster documents have for settings, and what they stand for here.

One row for each: a variable of the environment, the key of a file, an option of the command line, or several of these.
Where two give one setting, the later row counts. docs/configuration.md has the table as configuration_page makes it.
"""

from __future__ import annotations

from dataclasses import dataclass

from ollampi.launcher import readers
from ollampi.launcher.readers import Reader
from ollampi.launcher.settings import SETTINGS
from ollampi.mpiruntime.log_files import LEVELS

# Variables with these beginnings that are in no row are spelt wrong, or of a newer document.
PREFIXES = tuple(
    f"OLLAMA_{group}_"
    for group in ("CLUSTER", "API", "STORAGE", "LOGGING", "SECURITY", "WEB", "P2P", "CONSENSUS", "SCHEDULER")
)
NOT_OURS = ("OLLAMA_API_KEY",)  # which clients send


@dataclass(frozen=True)
class Row:
    """A name and what it stands for here.

    variable, key, option: "" where it has none; paths: the settings that it gives, none where it means nothing here;
    meaning: how values are read, or why it means nothing; read: gets the name to be shown and the value; is_switch:
    whether the option takes no value.
    """

    variable: str
    key: str
    option: str
    paths: tuple[str, ...]
    meaning: str
    read: Reader
    is_switch: bool = False

    @property
    def is_ollamas(self) -> bool:
        """Return whether Ollama itself has the variable, rather than the documents of its clusters."""
        return bool(self.variable) and not self.key and not self.variable.startswith((*PREFIXES, "OLLAMA_NODE_"))


def _row(variable: str, key: str, path: str, meaning: str = "", read: Reader | None = None, option: str = "") -> Row:
    """Return the row of a name that gives a setting, or several with blanks between them."""
    paths = tuple(path.split())
    assert all(each in SETTINGS for each in paths)
    return Row(variable, key, option, paths, meaning, read or readers.plain(path))


def _nothing(variable: str, key: str, reason: str, read: Reader | None = None, option: str = "") -> Row:
    """Return the row of a name that means nothing here."""
    return Row(variable, key, option, (), reason, read or readers.means_nothing(reason))


def _cluster(key: str, path: str, meaning: str = "", read: Reader | None = None) -> Row:
    """Return the row of a key of cluster.json and of the variable that is called like it."""
    return _row(_variable("cluster", key), key, path, meaning, read)


def _variable(group: str, key: str) -> str:
    return f"OLLAMA_{group}_{key}".upper().replace(".", "_")


_OWN_TRANSPORT = "ranks talk over MPI, which has addresses and ports of its own; exchange.interface names a network"
_NO_WEB = "there is no page but that of the API, at /docs on the server's own port"
_MPI_FINDS = "mpirun or Slurm says who takes part; `ollampi launch --hostfile` names hosts"
_NANOSECONDS = "nanoseconds, or a span such as 5s"
_ALWAYS_TOLD = "the figures of all ranks are always there: docs/metrics.md"
_FIXED_ROLES = "roles are admin, user and readonly; server.keys gives each key one: docs/security.md"
_ADDRESS = "host, host:port, :port or http://host:port"
_LEVEL = f"{', '.join(LEVELS)}; warn and trace are understood"
_ZERO = "0: the default"

# What a whole group of names is about that this server has nothing of.
GROUPS = {
    "p2p": "ranks find and reach each other by MPI, not from peer to peer",
    "consensus": "a job has one coordinator, rank 0: there is nothing to agree on",
}
ROWS: tuple[Row, ...] = (
    _cluster("enabled", "cluster.enabled", read=readers.switch("cluster.enabled", True, False)),
    _row("OLLAMA_NODE_NAME", "", "cluster.node_name"),
    _cluster("node_name", "cluster.node_name"),
    _cluster("node_role", "cluster.node_role"),
    _cluster("api_host", "server.host"),
    _cluster("api_port", "server.port"),
    _nothing("OLLAMA_CLUSTER_CLUSTER_HOST", "cluster_host", _OWN_TRANSPORT),
    _nothing("OLLAMA_CLUSTER_HOST", "", _OWN_TRANSPORT),
    _nothing("OLLAMA_CLUSTER_CLUSTER_PORT", "cluster_port", _OWN_TRANSPORT),
    _nothing("OLLAMA_CLUSTER_PORT", "", _OWN_TRANSPORT),
    _nothing(
        "OLLAMA_CLUSTER_DISCOVERY_METHOD",
        "discovery.method",
        "mpi and slurm are what there is; manual, multicast and mdns are taken for them, with a warning",
        readers.discovery,
    ),
    _nothing("OLLAMA_CLUSTER_DISCOVERY_NODE_LIST", "discovery.node_list", _MPI_FINDS),
    _cluster(
        "discovery.heartbeat_interval",
        "cluster.heartbeat_interval",
        _NANOSECONDS,
        readers.nanoseconds("cluster.heartbeat_interval"),
    ),
    _cluster(
        "discovery.node_timeout_interval",
        "cluster.node_timeout",
        _NANOSECONDS,
        readers.nanoseconds("cluster.node_timeout"),
    ),
    _cluster(
        "health.check_interval",
        "cluster.health_check_interval",
        _NANOSECONDS,
        readers.nanoseconds("cluster.health_check_interval"),
    ),
    _cluster(
        "health.node_timeout_threshold",
        "cluster.node_timeout",
        _NANOSECONDS,
        readers.nanoseconds("cluster.node_timeout"),
    ),
    _nothing(
        "OLLAMA_CLUSTER_HEALTH_ENABLE_DETAILED_METRICS",
        "health.enable_detailed_metrics",
        _ALWAYS_TOLD,
        readers.only(True, _ALWAYS_TOLD),
    ),
    _cluster("tensor_parallel.communication_strategy", "exchange.communication_strategy"),
    _cluster("tensor_parallel.compression_level", "exchange.compression_level"),
    _cluster("tensor_parallel.synchronization_points", "exchange.synchronization_points"),
    _cluster("tensor_parallel.prefetch_factor", "exchange.prefetch_factor"),
    _row("OLLAMA_API_LISTEN", "api.listen", "server.host server.port", _ADDRESS, readers.address, "--listen"),
    _row(
        "OLLAMA_API_TIMEOUT",
        "api.timeout",
        "engine.timeout_s",
        "seconds, or a span",
        readers.span("engine.timeout_s", None),
    ),
    _row("OLLAMA_API_MAX_BODY_SIZE", "api.max_body_size", "server.max_body_bytes"),
    _row(
        "OLLAMA_SECURITY_AUTH_ENABLED",
        "security.auth.enabled",
        "server.keys",
        "true: refused where the setting is null",
        readers.authentication,
    ),
    _nothing(
        "OLLAMA_SECURITY_AUTH_METHOD",
        "security.auth.method",
        "clients send a key of the file server.keys; nothing is signed",
    ),
    _nothing(
        "OLLAMA_SECURITY_AUTH_SECRET_KEY",
        "security.auth.secret_key",
        "nothing is signed; keys of clients are in the file server.keys",
    ),
    _nothing("", "security.auth.roles", _FIXED_ROLES),
    _row(
        "OLLAMA_SECURITY_TLS_ENABLED",
        "security.tls.enabled",
        "",
        "true is refused: a proxy before the server speaks TLS",
        readers.encryption,
    ),
    _nothing("OLLAMA_WEB_ENABLED", "web.enabled", _NO_WEB, readers.only(False, _NO_WEB)),
    Row("", "", "--enable-web", (), _NO_WEB, readers.only(False, _NO_WEB), is_switch=True),
    _nothing("OLLAMA_WEB_LISTEN", "web.listen", _NO_WEB),
    _row(
        "OLLAMA_STORAGE_DATA_DIR",
        "storage.data_dir",
        "store",
        "a folder, in which `models` is the store",
        readers.below("store", "models"),
        "--data-dir",
    ),
    _row("OLLAMA_STORAGE_MODEL_DIR", "storage.model_dir", "store"),
    _row("OLLAMA_STORAGE_CACHE_DIR", "storage.cache_dir", "cache"),
    _row("OLLAMA_LOGGING_LEVEL", "logging.level", "logging.level", _LEVEL, readers.level, "--log-level"),
    _row("", "scheduler.algorithm", "cluster.load_balancing"),
    _row("", "scheduler.load_balancing", "cluster.load_balancing"),
    _row("", "scheduler.worker_count", "server.threads"),
    _row("", "scheduler.queue_size", "engine.max_queue"),
    Row(
        "",
        "",
        "--enable-compression",
        ("exchange.communication_strategy",),
        "as exchange.communication_strategy=compressed",
        readers.switch("exchange.communication_strategy", "compressed"),
        is_switch=True,
    ),
    Row(
        "",
        "",
        "--debug-network",
        ("logging.network",),
        "as logging.network=true",
        readers.switch("logging.network", True),
        is_switch=True,
    ),
    _nothing("", "", GROUPS["p2p"], option="--p2p-listen"),
    _nothing("", "", "mpirun or Slurm says who takes part in a job", option="--bootstrap"),
    _row("OLLAMA_HOST", "", "server.host server.port", _ADDRESS, readers.address),
    _row("OLLAMA_MODELS", "", "store"),
    _row(
        "OLLAMA_KEEP_ALIVE",
        "",
        "engine.keep_alive_s",
        "seconds, or a span; negative: for ever; 0: not at all",
        readers.span("engine.keep_alive_s", -1.0),
    ),
    _row("OLLAMA_NUM_PARALLEL", "", "engine.max_running", _ZERO, readers.unless_zero("engine.max_running")),
    _row(
        "OLLAMA_MAX_LOADED_MODELS",
        "",
        "engine.max_loaded_models",
        _ZERO,
        readers.unless_zero("engine.max_loaded_models"),
    ),
    _row("OLLAMA_MAX_QUEUE", "", "engine.max_queue"),
    _row("OLLAMA_CONTEXT_LENGTH", "", "engine.context_length", _ZERO, readers.unless_zero("engine.context_length")),
    _row("OLLAMA_KV_CACHE_TYPE", "", "engine.cache_dtype", "f16: auto; q8_0: int8", readers.cache_type),
    _row(
        "OLLAMA_LOAD_TIMEOUT",
        "",
        "engine.load_timeout_s",
        "seconds, or a span; 0 or negative: for ever",
        readers.span("engine.load_timeout_s", None),
    ),
    _row("OLLAMA_ORIGINS", "", "server.origins", "origins with commas between them", readers.origins),
    _row("OLLAMA_DEBUG", "", "logging.level", "true, or a number above 0: debug", readers.debug),
    _row(
        "OLLAMA_MAX_TRANSFER_STREAMS",
        "",
        "server.transfer_streams",
        _ZERO,
        readers.unless_zero("server.transfer_streams"),
    ),
)
