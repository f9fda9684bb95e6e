"""Test what settings take, and what is said about one that cannot be used."""

import subprocess
import sys
from pathlib import Path

import pytest

from ollampi.launcher.given import chosen
from ollampi.launcher.kinds import Value
from ollampi.launcher.settings import SETTINGS
from ollampi.mpiruntime.errors import ConfigError

SOURCE = Path(__file__).resolve().parents[2] / "src"


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("server.port=11500", 11500),
        ("threads=null", None),
        ("drain_timeout_s=2", 2.0),
        ("engine.keep_alive_s=-1", -1.0),
        ("engine.cache_tokens=null", None),
        ("engine.cache_tokens=4096", 4096),
        ("engine.cache_fraction=0.8", 0.8),
        ("engine.cache_dtype=int8", "int8"),
        ("engine.dtype=float32", "float32"),
        ("engine.deterministic=true", True),
        ("engine.deterministic=false", False),
        ("model=/a b/(c),d=${e}'", "/a b/(c),d=${e}'"),
        ("model=1e3", "1e3"),
        ("model=null", "null"),
        ("model='a b'", "a b"),
        ("model_folders=/a b", ["/a b"]),
        ("model_folders=[/a b,/c]", ["/a b", "/c"]),
        ("model_folders=['/a,b', \"/c\"]", ["/a,b", "/c"]),
        ("model_folders=[]", []),
        ("model_folders=", []),
        ("server.origins=https://a:1", ["https://a:1"]),
        ("server.host=::1", "::1"),
        ("trace=/a b.json", "/a b.json"),
        ("trace=null", None),
        ("exchange.link=shared", "shared"),
        ("exchange.compression_level=4", 4),
        ("exchange.interface=null", None),
        ("pin=true", True),
        ("cluster.heartbeat_interval=5s", 5.0),
        ("cluster.heartbeat_interval=1m30s", 90.0),
        ("cluster.heartbeat_interval=5", 5.0),
        ("cluster.node_timeout=15.5", 15.5),
        ("cluster.node_timeout=24h", 86400.0),
        ("cluster.health_check_interval=100ms", 0.1),
        ("cluster.health_check_interval=0", 0.0),
        ("cluster.health_check_interval=0s", 0.0),
    ],
)
def test_the_command_line_gives_values(override: str, value: Value) -> None:
    values = chosen([override], {})
    assert values == {override.split("=")[0]: value}
    assert type(next(iter(values.values()))) is type(value)


@pytest.mark.parametrize(
    ("override", "text"),
    [
        ("engine.context_length=abc", "engine.context_length is 'abc'; it must be a whole number from 4 to 16777216"),
        ("engine.context_length=1.5", "engine.context_length is '1.5'; it must be a whole number"),
        (
            "cluster.heartbeat_interval=5000000000",
            "cluster.heartbeat_interval is 5000000000; it must be a number from 0.05 to 3600 (seconds, or with units:"
            " 90s, 1m30s)",
        ),
        ("cluster.heartbeat_interval=0", "cluster.heartbeat_interval is 0; it must be a number from 0.05 to 3600 ("),
        ("cluster.heartbeat_interval=5 s", "cluster.heartbeat_interval is '5 s'; it must be a number from 0.05"),
        ("cluster.node_timeout=-5s", "cluster.node_timeout is -5s; it must be a number from 0.1 to 86400 (seconds"),
        ("cluster.node_timeout=25h", "cluster.node_timeout is 25h; it must be a number from 0.1 to 86400 (seconds"),
        ("cluster.health_check_interval=1e10", "cluster.health_check_interval is 1e10; it must be a number from 0.1"),
        (
            "cluster.health_check_interval=50ms",
            "cluster.health_check_interval is 50ms; it must be a number from 0.1 to 86400 or 0 (seconds, or with units:"
            " 90s, 1m30s)",
        ),
        ("server.port=70000", "server.port is 70000; it must be a whole number from 0 to 65535"),
        ("server.port=null", "server.port is 'null'; it must be a whole number"),
        ("threads=x", "threads is 'x'; it must be a whole number from 1 to 1024 or null"),
        ("drain_timeout_s=nan", "drain_timeout_s is nan; it must be a number from 0 to 86400"),
        ("dtype=float16", "dtype is 'float16'; it must be one of auto, float32, bfloat16 (float16 weights are read as"),
        ("engine.dtype=int8", "engine.dtype is 'int8'; it must be one of auto, float32, bfloat16"),
        (
            "exchange.link=tcp",
            "exchange.link is 'tcp'; it must be one of auto, shared, mpi, nccl (shared adds up through",
        ),
        (
            "exchange.compression_level=5",
            "exchange.compression_level is 5; it must be a whole number from 0 to 4 (0 fp32,",
        ),
        ("exchange.overlap=true", "exchange.overlap is 'true'; it must be one of auto, always, never"),
        ("pin=1", "pin is '1'; it must be true or false"),
        ("trace=", "trace is ''; it must be the path of a file to write, or null"),
        ("engine.deterministic=yes", "engine.deterministic is 'yes'; it must be true or false"),
        ("model=", "model is ''; it must be the name of a model or the path of its folder"),
        ("model_folders=[/o'neill]", 'model_folders is "[/o\'neill]"; it must be the path of a folder, or several in'),
        ("engine.cache_tokens=1", "engine.cache_tokens is 1; it must be a whole number from 16 to 268435456 or null"),
        ("engine.cache_fraction=0", "engine.cache_fraction is 0; it must be a number from 0.01 to 1"),
        ("engine.cache_fraction=1.5", "engine.cache_fraction is 1.5; it must be a number from 0.01 to 1"),
        ("engine.cache_dtype=int4", "engine.cache_dtype is 'int4'; it must be one of auto, float32, bfloat16, int8"),
        ("sever=1", "unknown setting 'sever'; the configuration has: model, model_folders"),
        ("prefetch_factor=1", "unknown setting 'prefetch_factor'; did you mean exchange.prefetch_factor? the config"),
        ("timeout_s=1", "unknown setting 'timeout_s'; did you mean exchange.timeout_s or engine.timeout_s? the config"),
        (
            "server.prot=1",
            "unknown setting 'server.prot'; server has: host, port, threads, origins, hosts, keys, max_body_bytes",
        ),
        ("+model=x", "unknown setting '+model'"),
        ("model.name=x", "unknown setting 'model.name'; model has: no parts"),
        ("a.b.c=x", "unknown setting 'a.b.c'; the configuration has: model,"),
        ("server=1", "'server' is a group of settings; set one of them: server.host, server.port,"),
        ("nonsense", "'nonsense' is no setting; write key=value"),
        ("--n=4", "'--n=4' is no setting; write key=value"),
        ("=4", "'=4' is no setting; write key=value"),
    ],
)
def test_only_the_bad_setting_is_named(override: str, text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        chosen(["model=demo", override, "server.threads=8"], {})
    assert str(caught.value).startswith(text)
    assert "threads=8" not in str(caught.value)


@pytest.mark.parametrize(
    ("environ", "values"),
    [
        ({}, {}),
        ({"OLLAMA_CONTEXT_LENGTH": " '8192' "}, {"engine.context_length": 8192}),
        ({"OLLAMA_CONTEXT_LENGTH": "0", "OLLAMA_MAX_LOADED_MODELS": "0"}, {}),
        ({"OLLAMA_MODELS": "/srv/models"}, {"store": "/srv/models"}),
        ({"OLLAMA_MAX_QUEUE": "0"}, {"engine.max_queue": 0}),
        ({"OLLAMA_MAX_TRANSFER_STREAMS": "8"}, {"server.transfer_streams": 8}),
        ({"OLLAMA_MAX_TRANSFER_STREAMS": "0"}, {}),
        ({"OLLAMA_KV_CACHE_TYPE": "f16"}, {"engine.cache_dtype": "auto"}),
        ({"OLLAMA_KV_CACHE_TYPE": "Q8_0"}, {"engine.cache_dtype": "int8"}),
        ({"OLLAMA_KV_CACHE_TYPE": ""}, {}),
        ({"OLLAMA_HOST": ":11500"}, {"server.host": "0.0.0.0", "server.port": 11500}),
        ({"OLLAMA_HOST": "http://node7:8000/"}, {"server.host": "node7", "server.port": 8000}),
        ({"OLLAMA_HOST": "[::1]"}, {"server.host": "::1", "server.port": 11434}),
    ],
)
def test_ollamas_variables_give_values(environ: dict[str, str], values: dict[str, Value]) -> None:
    assert chosen([], environ) == values


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        (
            "OLLAMA_CONTEXT_LENGTH",
            "abc",
            "OLLAMA_CONTEXT_LENGTH is 'abc'; it must be a whole number from 4 to 16777216",
        ),
        ("OLLAMA_MAX_QUEUE", "-1", "OLLAMA_MAX_QUEUE is -1; it must be a whole number from 0 to 1048576"),
        (
            "OLLAMA_KV_CACHE_TYPE",
            "q4_0",
            "OLLAMA_KV_CACHE_TYPE is 'q4_0'; it must be f16 (engine.cache_dtype=auto, as without it) or q8_0 (engine.",
        ),
        ("OLLAMA_HOST", "a:b", "OLLAMA_HOST is 'a:b'; it must be host, host:port"),
    ],
)
def test_a_variable_is_named_as_such(name: str, value: str, text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        chosen(["model=demo"], {name: value})
    assert str(caught.value).startswith(text)


def test_the_command_line_beats_the_environment() -> None:
    assert chosen(["server.port=1"], {"OLLAMA_HOST": "h:2"}) == {"server.host": "h", "server.port": 1}


def test_every_setting_says_what_it_takes() -> None:
    assert all(kind.takes for kind in SETTINGS.values())


def test_nothing_heavy_is_imported() -> None:
    code = f"import sys; sys.path.insert(0, {str(SOURCE)!r}); import ollampi.launcher.given; print(len(sys.modules))"
    code += "; assert not {'torch', 'hydra', 'omegaconf', 'yaml', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL, timeout=60)
