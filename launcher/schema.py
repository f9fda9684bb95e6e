"""Define every setting with its type; settings.py holds the ranges, conf/config.yaml the defaults."""

from __future__ import annotations

from dataclasses import dataclass, field

from ollampi.mpiruntime.cluster_settings import ClusterSettings
from ollampi.mpiruntime.engine_settings import EngineSettings
from ollampi.mpiruntime.exchange_settings import ExchangeSettings
from ollampi.mpiruntime.log_files import LogSettings


@dataclass
class ServerConfig:
    """The HTTP process: address, threads (open requests), CORS origins, names of the host, keys, largest body.

    registries: hosts beside public ones that models may be pulled from and pushed to; transfer_streams: pieces of a
    blob under way at one time.
    """

    host: str = "127.0.0.1"
    port: int = 11434
    threads: int = 1024
    origins: list[str] = field(default_factory=list)
    hosts: list[str] = field(default_factory=list)
    keys: str | None = None
    max_body_bytes: int = 33554432
    registries: list[str] = field(default_factory=list)
    transfer_streams: int = 4


@dataclass
class ClusterConfig(ClusterSettings):
    """The ranks as nodes of a cluster; times in seconds.

    enabled: False starts one rank; node_name: None for the host's; preload: models that are loaded at the start and
    stay.
    """

    enabled: bool = True
    node_name: str | None = None
    heartbeat_interval: float = 1.0
    node_timeout: float = 15.0
    health_check_interval: float = 10.0
    preload: list[str] = field(default_factory=list)


@dataclass
class Config:
    """`ollampi serve`.

    model: a name in model_folders or the path of a Hugging Face folder; draft: a smaller model with the same tokenizer
    that proposes tokens for it; adapter: folders of LoRA adapters that are merged into it in turn; store: the root of
    the model store, null for ~/.ollama/models; device: auto, cpu or cuda; dtype: auto, float32 or bfloat16; quantize:
    auto, none, q8 or q4; cache: the folder that keeps quantised weights, null for none; stream: auto, never or always:
    whether layers are read from there in every step, where they do not fit into memory; load: slices, or scatter, where
    rank 0 reads for all; experts: cut, or spread whole over the ranks; deterministic: the same bits whatever else the
    server does; threads: per rank, null for an equal share of the cores; pin: keep ranks to cores of their own;
    drain_timeout_s: how long SIGUSR1 lets running requests go on; trace: the file that rank 0 writes at the end, null
    for none.
    """

    model: str = "demo"
    draft: str | None = None
    adapter: list[str] = field(default_factory=list)
    model_folders: list[str] = field(default_factory=list)
    store: str | None = None
    device: str = "auto"
    dtype: str = "auto"
    quantize: str = "auto"
    cache: str | None = None
    stream: str = "auto"
    load: str = "slices"
    experts: str = "cut"
    deterministic: bool = False
    drain_timeout_s: float = 60.0
    threads: int | None = None
    pin: bool = False
    exchange: ExchangeSettings = field(default_factory=ExchangeSettings)
    trace: str | None = None
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    logging: LogSettings = field(default_factory=LogSettings)
    server: ServerConfig = field(default_factory=ServerConfig)
    engine: EngineSettings = field(default_factory=EngineSettings)
