"""What file, environment and command line give, under the names of Ollama and its cluster documents."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ollampi.launcher.config import compose_config, shared
from ollampi.launcher.foreign import NOT_OURS, PREFIXES, ROWS
from ollampi.launcher.given import chosen, given
from ollampi.launcher.kinds import Value
from ollampi.launcher.schema import Config
from ollampi.launcher.settings import SETTINGS
from ollampi.mpiruntime.communicator import Communicator
from ollampi.mpiruntime.errors import ConfigError
from ollampi.mpiruntime.thread_world import run_threads

CLUSTER_JSON = {
    "enabled": True,
    "node_name": "worker-1",
    "node_role": "worker",
    "api_host": "0.0.0.0",
    "api_port": 11435,
    "cluster_host": "192.168.1.101",
    "cluster_port": 12094,
    "discovery": {
        "method": "manual",
        "node_list": ["192.168.1.100:12094"],
        "heartbeat_interval": 5000000000,
        "node_timeout_interval": 15000000000,
    },
    "tensor_parallel": {
        "communication_strategy": "compressed",
        "compression_level": 3,
        "synchronization_points": "attention_only",
        "prefetch_factor": 2,
    },
}


def written(folder: Path, text: str | dict[str, Any], name: str = "cluster.json") -> str:
    path = folder / name
    path.write_text(text if isinstance(text, str) else json.dumps(text))
    return str(path)


def test_the_file_of_the_document_gives_what_it_says(tmp_path: Path) -> None:
    found = given(["--config", written(tmp_path, CLUSTER_JSON)], {})
    assert found.values == {
        "cluster.enabled": True,
        "cluster.node_name": "worker-1",
        "cluster.node_role": "worker",
        "server.host": "0.0.0.0",
        "server.port": 11435,
        "cluster.heartbeat_interval": 5.0,
        "cluster.node_timeout": 15.0,
        "exchange.communication_strategy": "compressed",
        "exchange.compression_level": 3,
        "exchange.synchronization_points": "attention_only",
        "exchange.prefetch_factor": 2,
    }
    named = [warning.split(" means nothing here: ")[0].split(" in ")[0] for warning in found.warnings]
    assert named == ["cluster_host", "cluster_port", "discovery.method", "discovery.node_list"]
    assert compose_config(["--config", written(tmp_path, CLUSTER_JSON)], {}).server.port == 11435


def test_comments_of_the_documents_json_are_read_past(tmp_path: Path) -> None:
    text = """{"health": {
      "check_interval": 10000000000,      // 10 seconds in nanoseconds
      "node_timeout_threshold": 30000000000,  // 30 seconds
      "enable_detailed_metrics": true
    }, "model": "http://not/a // comment"}"""
    found = given(["--config", written(tmp_path, text)], {})
    assert found.values == {
        "model": "http://not/a // comment",
        "cluster.health_check_interval": 10.0,
        "cluster.node_timeout": 30.0,
    }
    assert found.warnings == []


def test_yaml_and_our_own_names_are_read_too(tmp_path: Path) -> None:
    text = """
server: {port: 11500, origins: [http://a, http://b], keys: null}
engine:
  keep_alive_s: 1m30s
  timeout_s: 5
scheduler: {algorithm: round_robin, load_balancing: least_connections, worker_count: 10, queue_size: 10000}
model_folders: /models
pin: true
"""
    assert chosen(["--config=" + written(tmp_path, text, "node.yaml")], {}) == {
        "server.port": 11500,
        "server.origins": ["http://a", "http://b"],
        "server.keys": None,
        "engine.keep_alive_s": 90.0,
        "engine.timeout_s": 5.0,
        "cluster.load_balancing": "least_connections",
        "server.threads": 10,
        "engine.max_queue": 10000,
        "model_folders": ["/models"],
        "pin": True,
    }


def test_the_command_line_comes_before_the_environment_and_that_before_the_file(tmp_path: Path) -> None:
    file = written(tmp_path, {"server": {"port": 1, "threads": 1}, "engine": {"max_queue": 1}, "model": "a"})
    found = given(["--config", file, "server.port=3"], {"OLLAMA_HOST": "h:2", "OLLAMA_MAX_QUEUE": "2"})
    assert found.values == {
        "model": "a",
        "server.host": "h",
        "server.port": 3,
        "server.threads": 1,
        "engine.max_queue": 2,
    }
    assert found.sources == {
        "model": f"file {file} (model)",
        "server.host": "environment OLLAMA_HOST",
        "server.port": "command line",
        "server.threads": f"file {file} (server.threads)",
        "engine.max_queue": "environment OLLAMA_MAX_QUEUE",
    }


@pytest.mark.parametrize(
    ("environ", "values"),
    [
        ({"OLLAMA_CLUSTER_ENABLED": "false"}, {"cluster.enabled": False}),
        ({"OLLAMA_CLUSTER_NODE_NAME": "my-custom-node"}, {"cluster.node_name": "my-custom-node"}),
        ({"OLLAMA_CLUSTER_DISCOVERY_METHOD": "mpi"}, {}),
        ({"OLLAMA_CLUSTER_DISCOVERY_HEARTBEAT_INTERVAL": "5000000000"}, {"cluster.heartbeat_interval": 5.0}),
        ({"OLLAMA_CLUSTER_DISCOVERY_HEARTBEAT_INTERVAL": "1m30s"}, {"cluster.heartbeat_interval": 90.0}),
        ({"OLLAMA_NODE_NAME": "node-1"}, {"cluster.node_name": "node-1"}),
        ({"OLLAMA_API_LISTEN": "0.0.0.0:11434"}, {"server.host": "0.0.0.0", "server.port": 11434}),
        ({"OLLAMA_API_LISTEN": "a:1", "OLLAMA_HOST": "b:2"}, {"server.host": "b", "server.port": 2}),
        ({"OLLAMA_API_TIMEOUT": "30s"}, {"engine.timeout_s": 30.0}),
        ({"OLLAMA_API_MAX_BODY_SIZE": "33554432"}, {"server.max_body_bytes": 33554432}),
        ({"OLLAMA_API_KEY": "of-a-client"}, {}),
        ({"OLLAMA_STORAGE_DATA_DIR": "/data/"}, {"store": "/data/models"}),
        ({"OLLAMA_STORAGE_DATA_DIR": "/d", "OLLAMA_STORAGE_MODEL_DIR": "/m"}, {"store": "/m"}),
        ({"OLLAMA_STORAGE_CACHE_DIR": "./cache"}, {"cache": "./cache"}),
        ({"OLLAMA_LOGGING_LEVEL": "WARN"}, {"logging.level": "warning"}),
        ({"OLLAMA_DEBUG": "1"}, {"logging.level": "debug"}),
        ({"OLLAMA_DEBUG": "false"}, {}),
        ({"OLLAMA_KEEP_ALIVE": "5m"}, {"engine.keep_alive_s": 300.0}),
        ({"OLLAMA_KEEP_ALIVE": "120"}, {"engine.keep_alive_s": 120.0}),
        ({"OLLAMA_KEEP_ALIVE": "-1"}, {"engine.keep_alive_s": -1.0}),
        ({"OLLAMA_KEEP_ALIVE": "-5m"}, {"engine.keep_alive_s": -1.0}),
        ({"OLLAMA_KEEP_ALIVE": "0"}, {"engine.keep_alive_s": 0.0}),
        ({"OLLAMA_NUM_PARALLEL": "4"}, {"engine.max_running": 4}),
        ({"OLLAMA_NUM_PARALLEL": "0"}, {}),
        ({"OLLAMA_LOAD_TIMEOUT": "5m"}, {"engine.load_timeout_s": 300.0}),
        ({"OLLAMA_LOAD_TIMEOUT": "0"}, {"engine.load_timeout_s": None}),
        ({"OLLAMA_ORIGINS": "http://a, https://*.b"}, {"server.origins": ["http://a", "https://*.b"]}),
        ({"OLLAMA_SECURITY_TLS_ENABLED": "false", "OLLAMA_SECURITY_AUTH_ENABLED": "false"}, {}),
    ],
)
def test_variables_give_settings_without_a_warning(environ: dict[str, str], values: dict[str, Value]) -> None:
    found = given([], environ)
    assert found.values == values
    assert found.warnings == []


@pytest.mark.parametrize(
    ("overrides", "values"),
    [
        (["--listen", "0.0.0.0:11500"], {"server.host": "0.0.0.0", "server.port": 11500}),
        (["--listen=:11500", "server.port=2"], {"server.host": "0.0.0.0", "server.port": 2}),
        (["--data-dir", "/opt/ollama/data"], {"store": "/opt/ollama/data/models"}),
        (["--log-level", "debug", "pin=true"], {"logging.level": "debug", "pin": True}),
        (["--debug-network", "--enable-compression"], {"logging.network": True}),
        (["drain_timeout_s=1m", "cluster.heartbeat_interval=250ms"], {"cluster.heartbeat_interval": 0.25}),
        (["cluster.preload=[a,b]"], {"cluster.preload": ["a", "b"]}),
    ],
)
def test_options_give_settings(overrides: list[str], values: dict[str, Value]) -> None:
    found = given(overrides, {})
    assert values.items() <= found.values.items()
    assert found.warnings == []
    assert {source.split(" (")[0] for source in found.sources.values()} == {"command line"}


@pytest.mark.parametrize(
    ("overrides", "environ", "name", "reason"),
    [
        (["--p2p-listen", "/ip4/0.0.0.0/tcp/4001"], {}, "--p2p-listen", "not from peer to peer"),
        (["--bootstrap=/ip4/a"], {}, "--bootstrap", "mpirun or Slurm"),
        (["--enable-web"], {}, "--enable-web", "/docs"),
        ([], {"OLLAMA_CLUSTER_DISCOVERY_METHOD": "mdns"}, "OLLAMA_CLUSTER_DISCOVERY_METHOD", "by MPI"),
        ([], {"OLLAMA_P2P_LISTEN": "/ip4/a"}, "OLLAMA_P2P_LISTEN", "not from peer to peer"),
        ([], {"OLLAMA_CONSENSUS_BOOTSTRAP": "true"}, "OLLAMA_CONSENSUS_BOOTSTRAP", "one coordinator"),
        ([], {"OLLAMA_CLUSTER_COLOUR": "red"}, "OLLAMA_CLUSTER_COLOUR", "no such variable is known"),
        ([], {"OLLAMA_WEB_ENABLED": "true"}, "OLLAMA_WEB_ENABLED", "/docs"),
        ([], {"OLLAMA_SECURITY_AUTH_METHOD": "jwt"}, "OLLAMA_SECURITY_AUTH_METHOD", "nothing is signed"),
        ([], {"OLLAMA_SECURITY_AUTH_SECRET_KEY": "s3cret"}, "OLLAMA_SECURITY_AUTH_SECRET_KEY", "nothing is signed"),
    ],
)
def test_what_means_nothing_is_named_once_with_the_reason(
    overrides: list[str], environ: dict[str, str], name: str, reason: str
) -> None:
    found = given(overrides, environ)
    assert found.values == {}
    (warning,) = found.warnings
    assert warning.startswith(f"{name} means nothing here: ")
    assert reason in warning
    assert "s3cret" not in warning


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ({"api_port": 70000}, "api_port in {file} is 70000; it must be a whole number from 0 to 65535"),
        ({"api_port": "x"}, "api_port in {file} is 'x'; it must be a whole number from 0 to 65535"),
        ({"api_port": True}, "api_port in {file} is true; it must be a whole number"),
        ({"api_port": None}, "api_port in {file} is null; it must be a whole number"),
        ({"node_name": 3}, "node_name in {file} is 3; it must be a name for this node, or null"),
        ({"node_role": "boss"}, "node_role in {file} is 'boss'; it must be one of auto, coordinator, worker, mixed"),
        ({"enabled": "maybe"}, "enabled in {file} is 'maybe'; it must be true or false"),
        (
            {"discovery": {"heartbeat_interval": 5}},
            "discovery.heartbeat_interval in {file} is 5 nanoseconds; it must be a number from 0.05 to 3600 (seconds,",
        ),
        (
            {"discovery": {"heartbeat_interval": "5 s"}},
            "discovery.heartbeat_interval in {file} is '5 s'; it must be a n",
        ),
        ({"discovery": {"method": "smoke"}}, "discovery.method in {file} is 'smoke'; it must be one of manual, multi"),
        ({"server": {"origins": [1]}}, "server.origins in {file} is [1]; it must be an origin, or several"),
        ({"server": {"prot": 1}}, "{path}: unknown setting 'server.prot'; server has: host, port"),
        ({"server": 1}, "{path}: 'server' is a group of settings; set one of them: server.host,"),
        ({"colour": {"of": 1}}, "{path}: unknown setting 'colour.of'; the configuration has: model,"),
        (
            {"security": {"tls": {"enabled": True}}},
            "security.tls.enabled in {file} is true; this server speaks no TLS:",
        ),
        (
            {"security": {"auth": {"enabled": True}}},
            "security.auth.enabled in {file} is true; server.keys must then be",
        ),
        ("[1]", "{path} is no object; write settings such as"),
        ("{", "{path} cannot be read: Expecting"),
        ('{"a": 1, "a": 2}', "{path} cannot be read: a key comes twice"),
        ('{"server.port": 1, "server": {"port": 2}}', "{path}: server.port comes twice; write it once"),
        ({"server": {"port": 10**400}}, "server.port in {file} is 1000"),
        ({"server": {"port": -(10**400)}}, "server.port in {file} is -1000"),
        (
            {"discovery": {"heartbeat_interval": "\u00b2"}},
            "discovery.heartbeat_interval in {file} is '\u00b2'; it must",
        ),
        ({"store": "/a\0b"}, "store in {file} is '/a\\x00b'; it must be the path of the folder"),
        ({"node_name": "\0"}, "node_name in {file} is '\\x00'; it must be a name for this node, or null"),
        ({"discovery": {"heartbeat_interval": "--5"}}, "discovery.heartbeat_interval in {file} is '--5'; it must"),
    ],
)
def test_a_file_that_cannot_be_used_is_one_line_with_the_file_and_the_key(
    tmp_path: Path, content: str | dict[str, Any], text: str
) -> None:
    file = written(tmp_path, content)
    with pytest.raises(ConfigError) as caught:
        given(["--config", file], {})
    assert str(caught.value).startswith(text.replace("{file}", file).replace("{path}", file))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "environ", "text"),
    [
        (["--config"], {}, "--config needs a value: --config=…"),
        (
            ["--config", "/nowhere/c.json"],
            {},
            "--config names /nowhere/c.json, which is no file; give the path of a JSON",
        ),
        (["--config", "/"], {}, "--config names /, which is no file"),
        (["--listen", "a:b"], {}, "--listen is 'a:b'; it must be host, host:port"),
        (["--colour=1"], {}, "'--colour=1' is no setting; write key=value"),
        ([], {"OLLAMA_KEEP_ALIVE": "soon"}, "OLLAMA_KEEP_ALIVE is 'soon'; it must be a number from -2147483648 to"),
        ([], {"OLLAMA_LOAD_TIMEOUT": "1x"}, "OLLAMA_LOAD_TIMEOUT is '1x'; it must be a number from 0.1 to"),
        ([], {"OLLAMA_LOGGING_LEVEL": "loud"}, "OLLAMA_LOGGING_LEVEL is 'loud'; it must be one of debug, info"),
        ([], {"OLLAMA_DEBUG": "\u00b2"}, "OLLAMA_DEBUG is '\u00b2'; it must be 1 or 0, true or false"),
        ([], {"OLLAMA_CLUSTER_HEALTH_CHECK_INTERVAL": "+-5"}, "OLLAMA_CLUSTER_HEALTH_CHECK_INTERVAL is '+-5'; it must"),
        (["server.threads=-" + "9" * 400], {}, "server.threads is -999"),
        ([], {"OLLAMA_DEBUG": "maybe"}, "OLLAMA_DEBUG is 'maybe'; it must be 1 or 0, true or false"),
        ([], {"OLLAMA_CLUSTER_API_PORT": "x"}, "OLLAMA_CLUSTER_API_PORT is 'x'; it must be a whole number"),
        ([], {"OLLAMA_SECURITY_TLS_ENABLED": "true"}, "OLLAMA_SECURITY_TLS_ENABLED is true; this server speaks no TLS"),
        ([], {"OLLAMA_SECURITY_AUTH_ENABLED": "1"}, "OLLAMA_SECURITY_AUTH_ENABLED is true; server.keys must then be"),
    ],
)
def test_what_cannot_be_used_is_named(overrides: list[str], environ: dict[str, str], text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        given(overrides, environ)
    assert str(caught.value).startswith(text)
    assert "\n" not in str(caught.value)


def test_authentication_that_is_asked_for_is_had_with_a_file_of_keys() -> None:
    found = given(["server.keys=/keys"], {"OLLAMA_SECURITY_AUTH_ENABLED": "true"})
    assert found.values == {"server.keys": "/keys"}


def test_strange_files_are_one_message_too(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has more than 1048576 bytes"):
        given(["--config", written(tmp_path, " " * (1 << 20) + "{}")], {})
    with pytest.raises(ConfigError, match=r"cannot be read: .*; correct it there$"):
        given(["--config", written(tmp_path, "a: [", "a.yml")], {})
    with pytest.raises(ConfigError, match=r"is nested too deeply, or holds itself"):
        given(["--config", written(tmp_path, "engine: &a {b: *a}", "b.yml")], {})
    with pytest.raises(ConfigError, match=r"^server\.port in .*c\.yml is \[\[\.\.\.\]\]; it must be a whole number"):
        given(["--config", written(tmp_path, "server: {port: &a [*a]}", "c.yml")], {})
    for twice in ("server: {port: 1, port: 2}", "server: {port: 1}\nserver: {host: a}", "p2p: [{a: 1, a: 1}]"):
        with pytest.raises(ConfigError, match=r"d\.yml cannot be read: a key comes twice; correct it there$"):
            given(["--config", written(tmp_path, twice, "d.yml")], {})
    (tmp_path / "b.json").write_bytes(b"\xff")
    with pytest.raises(ConfigError, match="is no text: byte 0 is not UTF-8"):
        given(["--config", str(tmp_path / "b.json")], {})


def test_every_row_of_the_table_is_of_use() -> None:
    for row in ROWS:
        assert row.variable or row.key or row.option
        assert set(row.paths) <= set(SETTINGS)
        assert row.paths or row.meaning
        assert not row.key or row.key not in SETTINGS or row.paths == (row.key,)
    for names in ([row.variable for row in ROWS], [row.key for row in ROWS], [row.option for row in ROWS]):
        given_names = [name for name in names if name]
        assert len(given_names) == len(set(given_names))
    assert all(name.startswith(PREFIXES) for name in NOT_OURS)


@pytest.mark.parametrize("size", [1, 3])
def test_all_ranks_have_the_settings_of_rank_0_but_for_what_belongs_to_a_host(size: int) -> None:
    own = [
        compose_config(
            [f"exchange.interface=lo{rank}", "server.origins=[a,b]"],
            {"OLLAMA_MAX_QUEUE": str(rank), "OLLAMA_NODE_NAME": f"n{rank}"},
        )
        for rank in range(size)
    ]

    def work(comm: Communicator) -> Config:
        return shared(comm, own[comm.rank])

    for rank, config in enumerate(run_threads(size, work)):
        assert (config.engine.max_queue, config.server.origins) == (0, ["a", "b"])
        assert (config.cluster.node_name, config.exchange.interface) == (f"n{rank}", f"lo{rank}")
