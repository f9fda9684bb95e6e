"""Collect what the operator gives: a file, the environment before it, the command line before both."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from ollampi.launcher.foreign import GROUPS, NOT_OURS, PREFIXES, ROWS
from ollampi.launcher.kinds import Value
from ollampi.launcher.readers import Read
from ollampi.launcher.settings import SETTINGS, parse_setting, typed
from ollampi.launcher.settings_file import read_file
from ollampi.mpiruntime.errors import ConfigError, quoted

COMMAND_LINE = "command line"
_CONFIG = "--config"
_OPTIONS = {row.option: row for row in ROWS if row.option}
_BY_KEY = {row.key: row for row in ROWS if row.key}


@dataclass
class Given:
    """What was given: values by the path of a setting, where each comes from, and what means nothing here."""

    values: dict[str, Value] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    needs: dict[str, str] = field(default_factory=dict)  # by setting that must not be null: the name that says so

    def take(self, read: Read, name: str, source: str) -> None:
        """Take what a name gives, before all that was taken earlier."""
        self.values |= read.values
        self.sources |= dict.fromkeys(read.values, source)
        if read.warning:
            self.warnings.append(f"{name} means nothing here: {read.warning}")
        if read.needs:
            self.needs[read.needs] = name

    def check(self) -> None:
        """Raise ConfigError where a name wants a setting that nobody gave."""
        for path, name in self.needs.items():
            if self.values.get(path) is None:
                raise ConfigError(f"{name} is true; {path} must then be {SETTINGS[path].takes}, and not null")


def given(overrides: Sequence[str], environ: Mapping[str, str]) -> Given:
    """Return what file, environment and command line give.

    Raise ConfigError for the first that cannot be used, with its name, its value and what it takes.
    """
    files, on_line = _split(overrides)
    found = Given()
    for file in files:
        _take_file(found, file)
    _take_environment(found, environ)
    for override in on_line:
        path, _, text = override.partition("=")
        if path in _OPTIONS:
            found.take(_OPTIONS[path].read(path, text), path, f"{COMMAND_LINE} ({path})")
        else:
            found.take(Read({path: parse_setting(path, path, text)}), path, COMMAND_LINE)
    found.check()
    return found


def chosen(overrides: Sequence[str], environ: Mapping[str, str]) -> dict[str, Value]:
    """Return path -> value of the settings that are given; raise ConfigError as `given` does."""
    return given(overrides, environ).values


def _split(overrides: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the files of settings on a command line, and the rest as key=value or --option=value."""
    files, rest, words = [], [], iter(overrides)
    for word in words:
        name, equals, text = word.partition("=")
        if name == _CONFIG or name in _OPTIONS:
            if not equals:
                text = "true" if name in _OPTIONS and _OPTIONS[name].is_switch else next(words, "")
            if not text:
                raise ConfigError(f"{name} needs a value: {name}=…")
            files += [text] if name == _CONFIG else []
            rest += [] if name == _CONFIG else [f"{name}={text}"]
        elif word.startswith("-") or not equals or not name:
            raise ConfigError(
                f"{quoted(word)} is no setting; write key=value, for example server.port=11500; `ollampi serve --help`"
                " lists settings and options"
            )
        else:
            rest.append(word)
    return files, rest


def _take_file(found: Given, file: str) -> None:
    """Take the settings of a file; keys of the documents count in the order of the table, after settings by path."""
    keys = read_file(file)
    order = list(_BY_KEY)
    for key, value in sorted(keys, key=lambda each: order.index(each[0]) if each[0] in _BY_KEY else -1):
        name, source = f"{key} in {file}", f"file {file} ({key})"
        if key in _BY_KEY:
            found.take(_BY_KEY[key].read(name, value), name, source)
        elif key in GROUPS:
            found.warnings.append(f"{name} means nothing here: {GROUPS[key]}")
        else:
            found.take(Read({key: typed(key, name, value)}), name, source)


def _take_environment(found: Given, environ: Mapping[str, str]) -> None:
    """Take the variables that have a value."""
    for row in ROWS:
        if row.variable and (text := environ.get(row.variable, "").strip().strip("\"'")):
            found.take(row.read(row.variable, text), row.variable, f"environment {row.variable}")
    found.warnings += _strangers(environ)


def _strangers(environ: Mapping[str, str]) -> Iterator[str]:
    """Yield a warning for each variable of the documents' kind that is in no row."""
    known = {row.variable for row in ROWS} | set(NOT_OURS)
    for name in sorted(environ):
        if name.startswith(PREFIXES) and name not in known and environ[name].strip():
            group = GROUPS.get(name.split("_")[1].lower())
            reason = group or "no such variable is known; docs/configuration.md lists them"
            yield f"{name} means nothing here: {reason}"
