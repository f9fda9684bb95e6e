"""Define every setting with its type; settings.py holds the ranges, conf/config.yaml the defaults."""

from __future__ import annotations

from dataclasses import dataclass, field

from ollampi.mpiruntime.engine_settings import EngineSettings
from ollampi.mpiruntime.exchange_settings import ExchangeSettings


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
class ClusterConfig:
    """The ranks as nodes; times as Go writes durations.

    heartbeat_interval: between two messages in which a rank tells how it is; node_timeout: after which a rank that
    says nothing is offline; health_check_interval: between two self-tests while there is nothing to do, 0 for none.
    """

    heartbeat_interval: str = "1s"
    node_timeout: str = "15s"
    health_check_interval: str = "10s"


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
    server: ServerConfig = field(default_factory=ServerConfig)
    engine: EngineSettings = field(default_factory=EngineSettings)
