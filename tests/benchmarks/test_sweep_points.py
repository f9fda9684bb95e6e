"""What benchmarks/sweep.py makes of its line: points in Hydra's grammar, one message for what cannot be read."""

from __future__ import annotations

import pytest
from sweep_points import MAX_POINTS, Load, Point, Server, level_settings, read

from ollampi.mpiruntime.errors import ConfigError


def test_a_line_without_overrides_is_one_point() -> None:
    sweep = read(["starts=1"])
    assert sweep.points == [Point(Server(), Load())]
    assert (sweep.options["repeats"], sweep.options["model"], sweep.settings) == (3, "demo", {})


def test_all_is_done_once_for_each_start_one_behind_the_other() -> None:
    sweep = read(["shards=1,2", "starts=3"])
    assert [(point.server.start, point.server.shards) for point in sweep.points] == [
        (0, 1),
        (0, 2),
        (1, 1),
        (1, 2),
        (2, 1),
        (2, 2),
    ]
    assert len({sweep.key(point, "a") for point in sweep.points}) == 6
    assert sweep.points[0].text + " start=1" == sweep.points[2].text
    assert sweep.points[2].at_start(0) == sweep.points[0]


def test_axes_are_multiplied_and_the_loads_of_a_server_stand_together() -> None:
    sweep = read(
        [
            "-m",
            "starts=1",
            "shards=1,2,4",
            "threads=null,1",
            "quantize=none,q8",
            "concurrency=1,8",
            "prompt=range(16,64,16)",
        ]
    )
    assert len(sweep.points) == 3 * 2 * 2 * 2 * 3
    servers = [point.server for point in sweep.points]
    assert servers == sorted(servers, key=servers.index)  # none comes back behind another one
    assert sweep.points[1] == Point(Server(1, 1, None, "none"), Load(1, 32, 64))
    assert sweep.points[-1].text == (
        "shards=4 replicas=1 threads=1 quantize=q8 level=auto concurrency=8 prompt=48 output=64"
    )


def test_a_value_counts_once_and_a_list_is_as_good_as_commas() -> None:
    assert read(["shards=2,1,2"]).points == read(["shards=[2,1]"]).points


def test_settings_of_the_server_go_to_every_server_behind_the_sweeps_own() -> None:
    sweep = read(["prompt=100,120", "output=10", "concurrency=1,3", "engine.block_size=8", "dtype=float32"])
    assert sweep.server_settings() == [
        "engine.context_length=192",  # 130 tokens, in steps of 64
        "engine.cache_tokens=768",
        "engine.max_running=256",
        "engine.max_drafts=0",
        "engine.block_size=8",
        "dtype=float32",
    ]
    assert "engine.cache_tokens=9999" in read(["engine.cache_tokens=9999"]).server_settings()


def test_a_key_is_of_all_that_decides_what_is_measured() -> None:
    sweep = read(["shards=1,2", "starts=1"])
    keys = {sweep.key(point, digest) for point in sweep.points for digest in ("a", "b")}
    assert len(keys) == 4
    assert sweep.key(sweep.points[0], "a") == read(["folder=elsewhere"]).key(sweep.points[0], "a")
    for word in ("repeats=6", "warmups=0", "dtype=float32", "output=65"):
        assert read([word, "shards=1,2"]).key(sweep.points[0], "a") not in keys


def test_levels_are_forced_from_1_on() -> None:
    assert level_settings("auto") == []
    assert level_settings("0") == ["exchange.communication_strategy=none", "exchange.compression_level=0"]
    assert level_settings("2") == ["exchange.communication_strategy=compressed", "exchange.compression_level=2"]


def test_paths_and_options_are_taken_as_they_stand() -> None:
    sweep = read(["model=/a=b,c d", "slurm_options=[--time=3,--partition=x]", "--dry-run"])
    assert sweep.options["model"] == "/a=b,c d"
    assert sweep.options["slurm_options"] == ["--time=3", "--partition=x"]
    assert sweep.options["dry_run"] is True


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("shards=0,1", "shards is 0; it must be a whole number from 1 to 4096"),
        ("shards=x", "shards is 'x'; it must be a whole number"),
        ("shards=", "shards is ''; it must be"),
        ("shards", "'shards' is no override; write KEY=VALUE"),
        ("--frobnicate", "'--frobnicate' is no override"),
        ("shards=1,,2", "'shards=1,,2' cannot be read"),
        ("shards=[1,[2]]", "shards is '\\[2\\]'; it must be"),
        ("shards=[]", "shards has no value; give one"),
        ("shards={a:1}", "shards is"),
        ("shards=${prompt}x", "shards is '128x'"),
        ("shards=${nothing}", "cannot be used"),
        ("concurrency=glob(*)", "cannot be read"),
        ("+x=3", "'\\+x' names nothing of a sweep, nor a setting of the server; it has the axes shards"),
        ("shard=3", "'shard' names nothing of a sweep"),
        ("engine.blck_size=0", "unknown setting 'engine.blck_size'"),
        ("engine.block_size=0", "engine.block_size is 0; it must be"),
        ("engine.max_drafts=3", "is the sweep's own to set"),
        ("server.port=3", "is the sweep's own to set"),
        ("model=", "model is ''; it must be the path of a model"),
        ("repeats=1.5", "repeats is '1.5'; it must be a whole number"),
        ("level=7", "level is '7'; it must be one of auto, 0, 1, 2, 3, 4"),
        ("output=1", "output is 1; it must be"),
        ("prompt=range(2,20000)", f"the sweep has 39996 points; it may have {MAX_POINTS} at most"),
    ],
)
def test_a_word_that_cannot_be_used_is_one_message(word: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        read(["replicas=1", word])
    assert "\n" not in str(error.value)
