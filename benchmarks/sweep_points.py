"""The points of a sweep, from a line of overrides in Hydra's grammar and conf/sweep.yaml."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import product
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ollampi.launcher.config import CONF
from ollampi.launcher.kinds import Choice, Flag, Kind, Number, Span, Text, Texts
from ollampi.launcher.settings import SETTINGS, parse, parse_setting
from ollampi.mpiruntime.errors import ConfigError

LEVELS = Choice(("auto", "0", "1", "2", "3", "4"), "0 fp32, 1 bf16, 2 int8, 3 fp8, 4 int4; auto is the server's choice")
OF_SERVER: dict[str, Kind] = {
    "shards": Number(int, 1, 4096),
    "replicas": Number(int, 1, 4096),
    "threads": SETTINGS["threads"],
    "quantize": SETTINGS["quantize"],
    "level": LEVELS,
}
OF_LOAD: dict[str, Kind] = {
    "concurrency": Number(int, 1, 1024),
    "prompt": Number(int, 2, 2**20, note="tokens; one is the text that a request must have"),
    "output": Number(int, 2, 2**20, note="tokens; there is no time between tokens of fewer"),
}
AXES = OF_SERVER | OF_LOAD
OPTIONS: dict[str, Kind] = {
    "model": Text("the path of a model, or the name of one that ships"),
    "starts": Number(int, 1, 100),
    "warmups": Number(int, 0, 1000),
    "repeats": Number(int, 1, 1000),
    "folder": Text("the path of a folder"),
    "retry": Flag(),
    "dry_run": Flag(),
    "ready_s": Span(1, 86400),
    "request_s": Span(1, 86400),
    "slurm": Flag(),
    "slurm_options": Texts("options of sbatch in brackets: [--partition=main,--time=30]"),
    "slurm_wait_s": Span(0, 31536000),
    "only": Texts("names of points in brackets"),
}
MAX_POINTS = 10_000
_FLAGS = {"--dry-run": "dry_run=true", "-m": None, "--multirun": None}  # a sweep is a multirun anyway
_OWN = ("model", "server.port", "engine.max_drafts")  # settings of the server that the sweep itself gives


@dataclass(frozen=True)
class Server:
    """What a server is started with; threads: per rank, None for an equal share of cores; start: which of several."""

    shards: int = 1
    replicas: int = 1
    threads: int | None = None
    quantize: str = "auto"
    level: str = "auto"
    start: int = 0

    @property
    def ranks(self) -> int:
        """Return how many ranks it has."""
        return self.shards * self.replicas


@dataclass(frozen=True)
class Load:
    """So many requests at once, each with a prompt and an answer of so many tokens."""

    concurrency: int = 1
    prompt: int = 128
    output: int = 64


@dataclass(frozen=True)
class Point:
    """One measurement."""

    server: Server
    load: Load

    @property
    def values(self) -> dict[str, Any]:
        """Return its place on each axis."""
        found = asdict(self.server) | asdict(self.load)
        return {name: found[name] for name in AXES}

    @property
    def words(self) -> dict[str, str]:
        """Return its place on each axis as a line for a sweep has it."""
        return {name: _word(value) for name, value in self.values.items()}

    @property
    def text(self) -> str:
        """Return it in words."""
        again = f" start={self.server.start}" if self.server.start else ""
        return " ".join(f"{name}={word}" for name, word in self.words.items()) + again

    def at_start(self, number: int) -> Point:
        """Return the point with another start of its server."""
        return replace(self, server=replace(self.server, start=number))


@dataclass(frozen=True)
class Sweep:
    """What the line asks for: points in the order in which they are measured, options, settings of all servers."""

    points: list[Point]
    options: dict[str, Any]
    settings: dict[str, str] = field(default_factory=dict)

    def server_settings(self) -> list[str]:
        """Return what all servers get: room for the most that any point asks for, and the settings of the line.

        All have the same cache, so that what they hold can be compared.
        """
        longest = max(point.load.prompt + point.load.output for point in self.points)
        widest = max(point.load.concurrency for point in self.points)
        room = -(-longest // 64) * 64
        found = {
            "engine.context_length": str(room),
            "engine.cache_tokens": str(room * (widest + 1)),
            "engine.max_running": str(max(256, widest)),
            "engine.max_drafts": "0",
        }
        return [f"{name}={value}" for name, value in (found | self.settings).items()]

    def key(self, point: Point, digest: str) -> str:
        """Return the name of a point: a digest of all that decides what is measured, with that of the model."""
        counted = {name: self.options[name] for name in ("warmups", "repeats")}
        told = json.dumps([asdict(point), counted, self.server_settings(), digest], sort_keys=True)
        return hashlib.sha256(told.encode()).hexdigest()[:12]


def level_settings(level: str, strategy: str = "compressed") -> list[str]:
    """Return the settings of a level of the exchange; none for the server's own choice."""
    if level == "auto":
        return []
    strategy = "none" if level == "0" else strategy
    return [f"exchange.communication_strategy={strategy}", f"exchange.compression_level={level}"]


def read(words: Sequence[str]) -> Sweep:
    """Return the sweep of a command line; raise ConfigError with the word, the constraint and the remedy."""
    given = [text for word in words if (text := _FLAGS.get(word, word)) is not None]
    overrides: dict[str, Override] = {}
    options: dict[str, Any] = {}
    settings: dict[str, str] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals:
            raise ConfigError(f"{text!r} is no override; write KEY=VALUE, or KEY=VALUE,VALUE to sweep")
        if name in AXES:
            overrides[name] = _override(text)
        elif name in OPTIONS:
            options[name] = parse(OPTIONS[name], name, value)
        else:
            settings[name] = _setting(name, value)
    composed = _composed([found for found in overrides.values() if not found.is_sweep_override()])
    axes = {name: _values(name, overrides.get(name), composed[name]) for name in AXES}
    defaults = {name: _checked(name, OPTIONS[name], composed[name]) for name in OPTIONS}
    options = defaults | options
    points = list(_points(axes, options["starts"]))
    return Sweep([point.at_start(number) for number in range(options["starts"]) for point in points], options, settings)


def _setting(name: str, text: str) -> str:
    """Return what a setting of the server gets; raise ConfigError."""
    if name in _OWN:
        raise ConfigError(f"{name} is the sweep's own to set; leave it out")
    if name not in SETTINGS and "." not in name:
        known = f"it has the axes {', '.join(AXES)} and the options {', '.join(OPTIONS)}"
        raise ConfigError(f"{name!r} names nothing of a sweep, nor a setting of the server; {known}")
    parse_setting(name, name, text)
    return text


def _override(text: str) -> Override:
    """Return an override of an axis; raise ConfigError."""
    try:
        found = OverridesParser.create().parse_override(text)
    except HydraException as e:
        reason = " ".join(str(e).split()).partition(" See https")[0]
        raise ConfigError(f"{text!r} cannot be read ({reason}); write KEY=VALUE, or KEY=VALUE,VALUE to sweep") from e
    return found


def _composed(overrides: Sequence[Override]) -> dict[str, Any]:
    """Return conf/sweep.yaml under the overrides; raise ConfigError."""
    try:
        with initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
            composed = compose("sweep", [found.input_line or "" for found in overrides])
        values = OmegaConf.to_container(composed, resolve=True)
    except (HydraException, OmegaConfBaseException) as e:
        raise ConfigError(f"{CONF / 'sweep.yaml'} cannot be used: {' '.join(str(e).split())}") from e
    assert isinstance(values, dict)
    return {str(name): value for name, value in values.items()}


def _values(name: str, override: Override | None, composed: Any) -> list[Any]:
    """Return the values of an axis, each once; raise ConfigError."""
    if override is not None and override.is_sweep_override():
        try:
            texts = [parse(AXES[name], name, _unquoted(text)) for text in override.sweep_string_iterator()]
        except HydraException as e:  # glob() and its like
            raise ConfigError(f"{override.input_line!r} cannot be read: {e}; write {name}=VALUE,VALUE") from e
        return list(dict.fromkeys(texts))
    values = composed if isinstance(composed, list) else [composed]
    if not values:
        raise ConfigError(f"{name} has no value; give one: {AXES[name].takes}")
    return list(dict.fromkeys(_checked(name, AXES[name], value) for value in values))


def _checked(name: str, kind: Kind, value: Any) -> Any:
    """Return a value of the composed configuration; raise ConfigError where it is none of its kind."""
    if isinstance(kind, Texts):
        value = [str(part) for part in value] if isinstance(value, list) else value
    elif value is not None and not isinstance(kind, Flag):
        return parse(kind, name, str(value))
    if not kind.fits(value) or (isinstance(kind, Texts) and not isinstance(value, list)):
        raise ConfigError(f"{name} is {_word(value)}; it must be {kind.takes}")
    return value


def _points(axes: Mapping[str, Sequence[Any]], starts: int) -> Iterator[Point]:
    """Yield all combinations, those of one server behind each other; raise ConfigError for too many."""
    count = starts
    for values in axes.values():
        count *= len(values)
    if count > MAX_POINTS:
        raise ConfigError(f"the sweep has {count} points; it may have {MAX_POINTS} at most: leave some values out")
    for server in product(*(axes[name] for name in OF_SERVER)):
        for load in product(*(axes[name] for name in OF_LOAD)):
            yield Point(Server(*server), Load(*load))


def _unquoted(text: str) -> str:
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'" else text


def _word(value: Any) -> str:
    return "null" if value is None else str(value)
