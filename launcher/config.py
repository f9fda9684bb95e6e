"""Compose the configuration: defaults, then a file, then the environment, then the command line."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ollampi.launcher.given import Given, given
from ollampi.launcher.kinds import Value
from ollampi.launcher.schema import Config
from ollampi.launcher.settings import SETTINGS, check_setting
from ollampi.mpiruntime.errors import ConfigError

CONF = Path(__file__).resolve().parent.parent / "conf"


def compose_config(overrides: list[str], environ: Mapping[str, str]) -> Config:
    """Return the checked configuration; raise ConfigError with the value, the constraint and the remedy."""
    return compose_given(given(overrides, environ))


def compose_given(found: Given) -> Config:
    """Return the checked configuration of what was given; raise ConfigError as `compose_config`."""
    ConfigStore.instance().store(name="schema", node=Config)
    try:
        with initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
            composed = compose("config")
        for path, value in found.values.items():
            OmegaConf.update(composed, path, _literal(value))
        for path in SETTINGS:
            value = OmegaConf.select(composed, path)
            check_setting(path, value, path, repr(value))
        config = OmegaConf.to_object(composed)
    except (HydraException, OmegaConfBaseException) as e:
        raise ConfigError(f"{CONF / 'config.yaml'} cannot be used: {' '.join(str(e).split())}") from e
    assert isinstance(config, Config)
    _check_together(config)
    return config


def _check_together(config: Config) -> None:
    """Raise ConfigError where settings that are right by themselves do not fit each other."""
    cluster = config.cluster
    if cluster.node_timeout < 2 * cluster.heartbeat_interval:
        raise ConfigError(
            f"cluster.node_timeout is {cluster.node_timeout:g} s; it must be at least twice cluster.heartbeat_interval,"
            f" which is {cluster.heartbeat_interval:g} s, or ranks would be offline between two heartbeats"
        )


def _literal(value: Value) -> Value:
    """Return a value in which OmegaConf sees no reference to another one."""
    if isinstance(value, list):
        return [part.replace("${", "\\${") for part in value]
    return value.replace("${", "\\${") if isinstance(value, str) else value
