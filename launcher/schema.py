"""Define every setting with its type; conf/config.yaml holds the defaults."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ollampi.mpiruntime.hosted import EngineSettings


@dataclass
class ServerConfig:
    """The HTTP process: address, threads (open requests at one time), extra CORS origins, largest body."""

    host: str = "127.0.0.1"
    port: int = 11434
    threads: int = 1024
    origins: list[str] = field(default_factory=list)
    max_body_bytes: int = 33554432


@dataclass
class Config:
    """`ollampi serve`.

    model: a name in model_folders or the path of a Hugging Face folder; dtype: auto, float32 or bfloat16; threads: per
    rank, null for an equal share of the cores; drain_timeout_s: how long SIGUSR1 lets running requests go on.
    """

    model: str = "demo"
    model_folders: list[str] = field(default_factory=list)
    dtype: str = "auto"
    drain_timeout_s: float = 60.0
    threads: int | None = None
    server: ServerConfig = field(default_factory=ServerConfig)
    engine: EngineSettings = field(default_factory=EngineSettings)


# (path, smallest, largest) of the numbers that have a range
RANGES: list[tuple[str, float, float]] = [
    ("drain_timeout_s", 0, 86400),
    ("threads", 1, 1024),
    ("server.port", 0, 65535),
    ("server.threads", 1, 4096),
    ("server.max_body_bytes", 1024, 2**31),
    ("engine.context_length", 4, 2**24),
    ("engine.cache_tokens", 16, 2**28),
    ("engine.block_size", 1, 1024),
    ("engine.max_step_tokens", 1, 2**16),
    ("engine.max_running", 1, 2**16),
    ("engine.max_queue", 0, 2**20),
    ("engine.max_loaded_models", 1, 64),
    ("engine.keep_alive_s", -(2**31), 2**31),
]
DTYPES = ("auto", "float32", "bfloat16")


def value_at(config: Any, path: str) -> Any:
    """Return the value at a dotted path of a config."""
    for name in path.split("."):
        config = getattr(config, name)
    return config
