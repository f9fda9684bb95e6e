"""Endpoint files: whole or not there, for their owner alone, and read with care."""

from __future__ import annotations

import json
import os
import stat
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.files import ENDLESS

from ollampi.launcher import endpoint
from ollampi.launcher.endpoint import Endpoint
from ollampi.mpiruntime.errors import ConfigError

ONE = Endpoint(
    "http://n1:4711", "12", "ollampi", "a token", "n1", 4711, 4, "demo", "2026-01-02T03:04:05+00:00", "/logs"
)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    where = tmp_path / "a" / "b"
    path = endpoint.write(ONE, where)
    assert path == where / "12.json"
    assert endpoint.read(where, "12") == ONE
    task = replace(ONE, job_id="12_10")
    endpoint.write(task, where)
    endpoint.write(replace(ONE, job_id="12_9"), where)
    endpoint.write(replace(ONE, job_id="7"), where)
    found, wrong = endpoint.read_all(where)
    assert (list(found), wrong) == (["7", "12", "12_9", "12_10"], [])
    assert found["12_10"] == task
    endpoint.remove(where, "12_10")
    endpoint.remove(where, "12_10")
    assert endpoint.read(where, "12_10") is None
    assert not [name for name in os.listdir(where) if name.startswith(".")]


def test_only_the_owner_can_read_it(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        path = endpoint.write(ONE, tmp_path / "made")
        endpoint.write(ONE, tmp_path / "made")  # again, over the first one
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_a_reader_never_sees_half_a_file(tmp_path: Path) -> None:
    endpoint.write(ONE, tmp_path)
    over = threading.Event()

    def rewrite() -> None:
        for turn in range(200):
            endpoint.write(replace(ONE, model="m" * (turn * 50)), tmp_path)
        over.set()

    writer = threading.Thread(target=rewrite)
    writer.start()
    reads = 0
    while not over.is_set() or not reads:
        found = endpoint.read(tmp_path, "12")
        assert found is not None
        assert set(found.model) <= {"m"} or found == ONE
        reads += 1
    writer.join()


def test_no_token_is_shown() -> None:
    assert "a token" not in repr(ONE)
    assert "a token" not in f"{ONE}"


def test_the_folder(tmp_path: Path) -> None:
    assert endpoint.folder({"OLLAMPI_ENDPOINTS": "/shared/x", "HOME": "/h"}) == Path("/shared/x")
    assert endpoint.folder({"OLLAMPI_ENDPOINTS": "", "HOME": "/h"}) == Path("/h/.ollampi/endpoints")
    assert endpoint.folder({"OLLAMPI_ENDPOINTS": "x"}) == Path.cwd() / "x"


def test_the_own_job() -> None:
    assert endpoint.own_job_id({}) is None
    assert endpoint.own_job_id({"SLURM_JOB_ID": "9"}) == "9"
    array = {"SLURM_JOB_ID": "9", "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "0"}
    assert endpoint.own_job_id(array) == "7_0"


@pytest.mark.parametrize("job_id", ["", "x", "-1", "1;2", "../1", "1_", "_1", "1_2_3", "١", "1\n", "1.0", "9" * 40])
def test_what_is_no_id_names_no_file(tmp_path: Path, job_id: str) -> None:
    for use in (endpoint.path_of, endpoint.read, endpoint.remove, endpoint.rank_logs):
        with pytest.raises(ConfigError, match="is no id of a job; give a number"):
            use(tmp_path, job_id)


@pytest.mark.parametrize(
    "change",
    [
        lambda held: {**held, "port": "80"},
        lambda held: {**held, "ranks": True},
        lambda held: {**held, "job_id": "13"},
        lambda held: {name: value for name, value in held.items() if name != "url"},
        lambda held: [held],
        lambda held: None,
    ],
)
def test_a_file_that_is_none_is_named(tmp_path: Path, change: Any) -> None:
    path = endpoint.write(ONE, tmp_path)
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    with pytest.raises(ConfigError, match=f"endpoint file {path} .*; remove it"):
        endpoint.read(tmp_path, "12")
    endpoint.write(replace(ONE, job_id="13"), tmp_path)
    found, wrong = endpoint.read_all(tmp_path)
    assert list(found) == ["13"]
    assert len(wrong) == 1


@pytest.mark.parametrize("text", ["", "{", "\xff", "[" * 100_000])
def test_rubbish_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "12.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigError, match=r"cannot be read .*; remove it"):
        endpoint.read(tmp_path, "12")


@pytest.mark.parametrize("kind", ["fifo", "device", "folder", "long", "another's"])
def test_what_may_not_end_or_be_believed_is_named(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "12.json"
    if kind in ENDLESS:
        ENDLESS[kind](path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "long":
        path.touch()
        os.truncate(path, 1 << 40)
    elif os.geteuid() == 0:
        os.chown(endpoint.write(ONE, tmp_path), 65534, -1)
    else:
        pytest.skip("only root can give a file to somebody else")
    found, wrong = endpoint.read_all(tmp_path)
    assert (found, len(wrong)) == ({}, 1)
    assert wrong[0].startswith(f"the endpoint file {path} cannot be read (")
    assert (wrong[0].endswith("; remove it"), wrong[0].count(str(path))) == (True, 1)


def test_what_a_later_version_adds_is_left_out(tmp_path: Path) -> None:
    path = endpoint.write(ONE, tmp_path)
    held = json.loads(path.read_text()) | {"colour": "blue"}
    del held["logs"]
    path.write_text(json.dumps(held))
    assert endpoint.read(tmp_path, "12") == replace(ONE, logs="")


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"no endpoint file can be written to .*; give a folder that all hosts see"):
        endpoint.write(ONE, tmp_path / "file" / "x")
    with pytest.raises(ConfigError, match=r"file: it is no folder; .*OLLAMPI_ENDPOINTS"):
        endpoint.prepare(tmp_path / "file")


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    endpoint.write(ONE, tmp_path)

    def full(_number: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ConfigError, match="No space left on device"):
        endpoint.write(replace(ONE, model="other"), tmp_path)
    assert os.listdir(tmp_path) == ["12.json"]
    assert endpoint.read(tmp_path, "12") == ONE
