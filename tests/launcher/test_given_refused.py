"""What cannot be used of file, environment and command line is one message with the name, the value and the remedy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.files import written

from ollampi.launcher.given import given
from ollampi.mpiruntime.errors import ConfigError


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
