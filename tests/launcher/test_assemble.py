"""Test what is built from a configuration."""

import json
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from support.servers import DEMO

from ollampi.launcher import assemble, http_process
from ollampi.launcher.config import compose_config
from ollampi.mpiruntime.errors import ConfigError, ModelError
from ollampi.mpiruntime.request import ModelRef


def find(*overrides: str) -> ModelRef:
    """Return the model that these settings name."""
    config = compose_config(list(overrides), {})
    return assemble.find_model(config, config.model)


def test_a_model_is_found_by_name_by_path_and_in_folders(tmp_path: Path) -> None:
    shutil.copytree(DEMO, tmp_path / "My demo")
    (tmp_path / "link").symlink_to("My demo")
    assert find("model=demo") == ModelRef("demo:latest", str(DEMO))
    assert find(f"model={tmp_path}/My demo") == ModelRef("My-demo:latest", f"{tmp_path}/My demo")
    assert find(f"model={tmp_path}/link").name == "link:latest"
    assert find("model=my-demo", f"model_folders={tmp_path}").path == f"{tmp_path}/My demo"


def test_a_path_that_is_no_model_says_why(tmp_path: Path) -> None:
    (tmp_path / "weights.gguf").touch()
    with pytest.raises(ModelError, match=r"^model weights:latest: weights\.gguf: the beginning needs 4 bytes"):
        find(f"model={tmp_path}/weights.gguf")
    (tmp_path / "weights.bin").touch()
    with pytest.raises(ModelError, match="is a file"):
        find(f"model={tmp_path}/weights.bin")
    with pytest.raises(ModelError, match=r"has no config\.json"):
        find(f"model={tmp_path}")
    with pytest.raises(ModelError, match=r"nothing is downloaded; .* demo:latest"):
        find("model=no/such")


def test_a_damaged_model_says_what_is_damaged(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "config.json").write_text("{}")
    with pytest.raises(ModelError, match="model m:latest"):
        find(f"model={tmp_path}/m")


def test_a_tokenizer_of_another_model_is_refused_before_the_model_is_read(tmp_path: Path) -> None:
    shutil.copytree(DEMO, tmp_path / "m")
    config = json.loads((DEMO / "config.json").read_text())
    (tmp_path / "m" / "config.json").write_text(json.dumps({**config, "vocab_size": 100}))
    message = r"model m:latest: tokenizer\.json has a token with the id 4095, and vocab_size in config\.json is 100"
    with pytest.raises(ModelError, match=message):
        find(f"model={tmp_path}/m")


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
def test_listen_on_loopback(host: str) -> None:
    with http_process.listen(compose_config([f"server.host={host}", "server.port=0"], {})) as listener:
        assert listener.getsockname()[1] > 0
        assert not listener.get_inheritable()


@pytest.mark.parametrize("host", ["no.such.host.invalid", "a..b", "192.0.2.1"])
def test_an_address_that_cannot_be_had_is_named_with_the_remedy(host: str) -> None:
    with pytest.raises(ConfigError) as caught:
        http_process.listen(compose_config([f"server.host={host}"], {}))
    assert str(caught.value).startswith(f"cannot listen on {host}:11434: ")
    assert str(caught.value).endswith("give another address with server.host=…, server.port=… or OLLAMA_HOST")


def test_a_port_in_use_leaves_no_socket_behind() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(ConfigError, match="Address already in use"):
        http_process.listen(compose_config([f"server.port={taken.getsockname()[1]}"], {}))


def test_the_listener_is_above_the_standard_descriptors() -> None:
    code = (
        "import os; from ollampi.launcher import http_process; from ollampi.launcher.config import compose_config; "
        "config = compose_config(['server.port=0'], {}); [os.close(n) for n in (0, 1)]; "
        "listener = http_process.listen(config); assert listener.fileno() > 2, listener; "
        "assert listener.getsockname()[1]"
    )
    path = str(Path(assemble.__file__).parents[2])
    done = subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": path}, stderr=subprocess.PIPE, timeout=60)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize("registry", ["a b", "http://", "ftp://a", "a:99999", "u@h"])
def test_a_registry_that_is_no_host_is_named(registry: str) -> None:
    config = compose_config([], {})
    config.server.registries = [registry]
    with socket.create_server(("127.0.0.1", 0)) as listener, pytest.raises(ConfigError, match=r"^server\.registries: "):
        http_process.start_front(config, listener, "unix:@nobody")
