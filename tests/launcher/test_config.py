"""Test that the schema, the defaults and the table of settings say the same, and what comes of them."""

from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import yaml

from ollampi.launcher import config
from ollampi.launcher.config import CONF, compose_config
from ollampi.launcher.kinds import Choice, Flag, Number, Span, Text, Texts
from ollampi.launcher.schema import Config
from ollampi.launcher.settings import SETTINGS
from ollampi.mpiruntime.errors import ConfigError


def leaves(schema: Any, prefix: str = "") -> dict[str, Any]:
    """Return path -> type of every setting in a dataclass."""
    found: dict[str, Any] = {}
    hints = get_type_hints(schema)
    for each in fields(schema):
        kind = hints[each.name]
        found |= leaves(kind, f"{prefix}{each.name}.") if is_dataclass(kind) else {f"{prefix}{each.name}": kind}
    return found


def wanted_type(path: str) -> Any:
    kind = SETTINGS[path]
    if isinstance(kind, Number):
        return kind.kind | None if kind.or_null else kind.kind
    if isinstance(kind, Span):
        return float | None if kind.or_null else float
    if isinstance(kind, Text):
        return str | None if kind.or_null else str
    if isinstance(kind, Flag):
        return bool
    return list[str] if isinstance(kind, Texts) else str


def test_the_table_of_settings_is_the_schemas() -> None:
    assert {path: wanted_type(path) for path in SETTINGS} == leaves(Config)


def test_the_defaults_name_every_setting_and_are_the_schemas() -> None:
    shipped = yaml.safe_load((CONF / "config.yaml").read_text())
    for path in SETTINGS:
        value = shipped
        for name in path.split("."):
            value = value[name]
        named = ("dtype", "deterministic", "quantize", "experts", "load", "stream", "exchange.prefetch_factor")
        assert value in [f"${{{name}}}" for name in named] or SETTINGS[path].fits(value), path
    assert compose_config([], {}) == Config()


@pytest.mark.parametrize(("given", "folders"), [("/a", ["/a"]), ("[/a,/b]", ["/a", "/b"]), ("[]", [])])
def test_adapters_are_one_folder_or_several(given: str, folders: list[str]) -> None:
    assert compose_config([f"adapter={given}"], {}).adapter == folders


def test_what_is_streamed_reaches_the_engine() -> None:
    engine = compose_config(["stream=never", "exchange.prefetch_factor=5"], {}).engine
    assert (engine.stream, engine.prefetch_factor) == ("never", 5)


def test_a_flag_reaches_the_engine() -> None:
    assert compose_config(["engine.deterministic=true"], {}).engine.deterministic is True
    assert compose_config(["deterministic=true"], {}).engine.deterministic is True
    assert compose_config([], {}).engine.deterministic is False


def test_one_dtype_holds_for_the_engine_too() -> None:
    assert compose_config(["dtype=float32"], {}).engine.dtype == "float32"
    assert isinstance(SETTINGS["engine.dtype"], Choice)


@pytest.mark.parametrize(
    "text", ["a,b", "a=b", "(a", "1e3", "null", "${x}", "/a b/${oc.env:HOME}", "模型", "a'b", "{a"]
)
def test_texts_arrive_as_they_were_written(text: str) -> None:
    composed = compose_config([f"model={text}", f"model_folders={text}"], {})
    assert (composed.model, composed.model_folders) == (text, [text])


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("threads: x", "could not be converted to Integer"),
        ("server: {port: 70000}", "server.port is 70000; it must be a whole number from 0 to 65535"),
        ("colour: red", "Key 'colour' not in 'Config'"),
    ],
)
def test_a_spoilt_config_file_is_one_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, text: str
) -> None:
    (tmp_path / "config.yaml").write_text(f"defaults: [schema, _self_]\n{line}\n")
    monkeypatch.setattr(config, "CONF", tmp_path)
    with pytest.raises(ConfigError, match=text):
        compose_config(["model=demo"], {})


def test_a_timeout_must_bear_a_missed_heartbeat() -> None:
    message = (
        "cluster.node_timeout is 9 s; it must be at least twice cluster.heartbeat_interval, which is 5 s, or ranks"
        " would be offline between two heartbeats"
    )
    with pytest.raises(ConfigError) as caught:
        compose_config(["cluster.heartbeat_interval=5s", "cluster.node_timeout=9s"], {})
    assert str(caught.value) == message
    config = compose_config(["cluster.heartbeat_interval=5s", "cluster.node_timeout=10s"], {})
    assert (config.cluster.heartbeat_interval, config.cluster.health_check_interval) == (5.0, 10.0)


def test_no_list_holds_a_character_that_ends_a_path(tmp_path: Path) -> None:
    (tmp_path / "c.json").write_text('{"model_folders": ["/a", "/b\\u0000"]}')
    for given in ("model_folders=[/a,/b\0]", f"--config={tmp_path / 'c.json'}"):
        with pytest.raises(
            ConfigError, match=r"^model_folders is .*/b\\x00.*; it must be the path of a folder, or several"
        ):
            compose_config([given], {})
