"""Compose the configuration: defaults, then the environment, then the command line."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ollampi.launcher.schema import DTYPES, RANGES, Config, value_at
from ollampi.mpiruntime.errors import ConfigError

CONF = Path(__file__).resolve().parent.parent / "conf"
_ENVIRONMENT = {
    "OLLAMA_CONTEXT_LENGTH": "engine.context_length",
    "OLLAMA_MAX_QUEUE": "engine.max_queue",
    "OLLAMA_MAX_LOADED_MODELS": "engine.max_loaded_models",
}


def compose_config(overrides: list[str], environ: Mapping[str, str]) -> Config:
    """Return the checked configuration; raise ConfigError with the value, the constraint and the remedy."""
    for override in overrides:
        if override.startswith("-") or "=" not in override:
            raise ConfigError(f"{override!r} is no setting; write key=value, for example server.port=11500")
        _known(override.split("=", 1)[0].lstrip("+~"))
    ConfigStore.instance().store(name="schema", node=Config)
    try:
        with initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
            composed = compose("config", overrides=[*_from_environment(environ), *overrides])
        config = OmegaConf.to_object(composed)
    except (HydraException, OmegaConfBaseException) as e:
        cause = str(e.__cause__ or e).splitlines()[0]
        raise ConfigError(f"the settings {' '.join(overrides)} cannot be used: {cause}") from e
    assert isinstance(config, Config)
    _check(config)
    return config


def _from_environment(environ: Mapping[str, str]) -> list[str]:
    """Return the overrides that Ollama's environment variables stand for."""
    found = [f"{key}={environ[name]}" for name, key in _ENVIRONMENT.items() if environ.get(name)]
    host = environ.get("OLLAMA_HOST", "")
    if host:
        name, _, port = host.removeprefix("http://").rstrip("/").rpartition(":") if ":" in host else (host, "", "")
        found += [f"server.host='{name}'"] if name else []
        found += [f"server.port={port}"] if port else []
    return found


def _known(path: str) -> None:
    """Raise ConfigError where no setting has this path, with the settings that are there."""
    level: Any = Config()
    for depth, name in enumerate(path.split(".")):
        names = [f.name for f in fields(level)] if is_dataclass(level) else []
        if name not in names:
            where = ".".join(path.split(".")[:depth]) or "the configuration"
            raise ConfigError(f"unknown setting {path!r}; {where} has: {', '.join(names) or 'no parts'}")
        level = getattr(level, name)


def _check(config: Config) -> None:
    """Raise ConfigError where a value is out of its range."""
    for path, low, high in RANGES:
        value = value_at(config, path)
        if value is not None and not (math.isfinite(value) and low <= value <= high):
            raise ConfigError(f"{path} is {value}; it must be from {low} to {high}")
    if config.dtype not in DTYPES:
        raise ConfigError(f"dtype is {config.dtype!r}; it must be one of {', '.join(DTYPES)}")
