"""What the server of a Slurm job has on its host and on the shared file system."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
from support.files import ENDLESS
from support.servers import DEMO
from support.servers import free_port as unused

from ollampi.launcher.endpoint import Endpoint
from ollampi.launcher.slurm_place import check_lacks, free_port, make_key, make_logs, model_name, needed_paths, words
from ollampi.mpiruntime.errors import ConfigError


def test_the_wanted_port_is_taken_where_it_is_free() -> None:
    wanted = unused()
    assert free_port("127.0.0.1", wanted) == wanted


def test_another_port_is_found_where_somebody_has_the_wanted_one() -> None:
    wanted = unused()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", wanted))
        taken.listen(1)
        assert free_port("127.0.0.1", wanted) != wanted
        assert free_port("0.0.0.0", wanted) != wanted
        assert free_port("127.0.0.1", 0) > 0


def test_an_address_of_another_host_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"no\.such\.host\.invalid"):
        free_port("no.such.host.invalid", 1234)


def test_a_key_is_its_owners_and_stays_when_the_job_is_queued_again(tmp_path: Path) -> None:
    path, key = make_key(tmp_path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.read_text() == f"admin {key}\n"
    assert make_key(tmp_path) == (path, key)
    path.chmod(0o644)  # others may have read it
    assert make_key(tmp_path)[1] != key
    path.write_text("broken")
    assert len(make_key(tmp_path)[1]) >= 32


@pytest.mark.parametrize("kind", ["fifo", "device", "no text"])
def test_what_is_no_file_of_a_key_gives_way_to_one(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "keys"
    if kind in ENDLESS:
        ENDLESS[kind](path)
    else:
        path.write_bytes(b"admin \xff")
    assert make_key(tmp_path)[0] == path
    assert path.is_file()
    assert make_key(tmp_path)[1] in path.read_text()


def test_a_key_that_cannot_be_written_is_refused_with_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "keys").mkdir()
    with pytest.raises(
        ConfigError, match=r"key cannot be written to .*/keys: .*; remove what is there.*logging\.folder"
    ):
        make_key(tmp_path)
    (tmp_path / "keys").rmdir()

    def full(*_given: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "open", full)
    with pytest.raises(ConfigError, match=r"/keys: No space left on device; .*make room"):
        make_key(tmp_path)


def test_a_folder_for_logs_that_cannot_be_is_refused_with_the_remedy(tmp_path: Path) -> None:
    make_logs(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").stat().st_mode & 0o777 == 0o700
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"file/logs: Not a directory; .*logging\.folder"):
        make_logs(tmp_path / "file" / "logs")
    with pytest.raises(ConfigError, match=r"file: it is no folder; .*logging\.folder"):
        make_logs(tmp_path / "file")


def test_nodes_must_have_models_and_adapters_that_are_given_by_path(tmp_path: Path) -> None:
    found = needed_paths({"model": str(DEMO), "draft": "/no/such", "adapter": ["/a"]})
    assert found[2:] == [str(DEMO), "/no/such", "/a"]
    assert needed_paths({"model": "demo"}) == found[:2]
    assert needed_paths({"model": "demo", "model_folders": [str(DEMO.parent)]})[2:] == [str(DEMO)]


def test_what_a_node_lacks_is_told_with_the_remedy() -> None:
    check_lacks({})
    with pytest.raises(ConfigError, match=r"^n2, n3 do not have /model: .*--exclude=n2,n3$"):
        check_lacks({"n2": ["/model"], "n3": ["/model"]})


def test_clients_ask_for_the_model_by_the_name_of_its_folder() -> None:
    assert model_name({"model": str(DEMO)}) == "demo"
    assert model_name({}) == "demo"
    assert model_name({"model": "other:1b"}) == "other:1b"


@pytest.mark.parametrize(
    ("host", "tunnel"),
    [("n1", "-L 11434:n1:20000 login"), ("127.0.0.1", "-L 11434:127.0.0.1:20000 -J login ")],
)
def test_the_lines_to_paste_tell_the_key_file_but_not_the_key(host: str, tunnel: str) -> None:
    made = Endpoint(f"http://{host}:20000", "7", "name", "SECRET", host, 20000, 4, "demo", "now")
    told = words(made, Path("/a b/keys"), "login", Path("/e/7.json"))
    assert tunnel in told
    assert f"'/a b/keys')\" http://{host}:20000/api/generate" in told
    assert "SECRET" not in told
    assert '"options": {"num_predict": 32}' in told  # a first answer that ends soon, wherever it is computed
    assert "  from your machine, then http://localhost:11434: ssh -N " in told
