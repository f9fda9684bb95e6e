"""`serve --help` tells the settings as the configuration has them."""

from __future__ import annotations

from ollampi.launcher.config import compose_config
from ollampi.launcher.documented import documented
from ollampi.launcher.settings import SETTINGS, parse


def test_every_setting_is_told_with_its_default() -> None:
    config = compose_config([], {})
    for each in documented():
        value: object = config
        for name in each.path.split("."):
            value = getattr(value, name)
        assert parse(SETTINGS[each.path], each.path, each.default) == value, each


def test_only_those_that_follow_another_are_left_out() -> None:
    left_out = set(SETTINGS) - {each.path for each in documented()}
    assert left_out == {f"engine.{name}" for name in ("dtype", "deterministic", "quantize", "shard_cache")} | {
        "engine.experts",
        "engine.load",
        "engine.prefetch_factor",
        "engine.stream",
    }


def test_what_a_name_does_not_say_is_told() -> None:
    silent = [each.path for each in documented() if not each.meaning]
    assert silent == ["server.port", "server.max_body_bytes", "engine.max_loaded_models"]
