"""What file, environment and command line give, under the names of Ollama and its cluster documents."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.files import written

from ollampi.launcher.config import compose_config
from ollampi.launcher.foreign import NOT_OURS, PREFIXES, ROWS
from ollampi.launcher.given import chosen, given
from ollampi.launcher.kinds import Value
from ollampi.launcher.schema import Config
from ollampi.launcher.settings import SETTINGS
from ollampi.launcher.sharing import shared
from ollampi.mpiruntime.communicator import Communicator
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


def test_authentication_that_is_asked_for_is_had_with_a_file_of_keys() -> None:
    found = given(["server.keys=/keys"], {"OLLAMA_SECURITY_AUTH_ENABLED": "true"})
    assert found.values == {"server.keys": "/keys"}


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
