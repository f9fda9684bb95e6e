"""Logs go where the settings say: a file for each part, as text or JSON lines, rotated, from a level on."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from ollampi.mpiruntime.communicator import Communicator, Single
from ollampi.mpiruntime.errors import ConfigError
from ollampi.mpiruntime.log_files import (
    API,
    NETWORK,
    SCHEDULER,
    LogSettings,
    check_folder,
    close_logs,
    in_files,
    open_logs,
    parts,
    set_level,
)
from ollampi.mpiruntime.logged import Logged
from ollampi.mpiruntime.thread_world import run_threads

OWN = logging.getLogger("ollampi.mpiruntime.runner")


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    yield
    close_logs()
    set_level("warning")


def text(folder: Path, part: str) -> str:
    return (folder / f"{part}.log").read_text()


def test_each_part_has_the_file_that_the_document_names(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "logs"
    open_logs(LogSettings(folder=str(folder), network=True), parts(0))
    assert in_files()
    OWN.info("of the coordinator")
    logging.getLogger(SCHEDULER).info("of the scheduler")
    logging.getLogger(NETWORK).debug("of the network")
    logging.getLogger("somebody.else").info("not ours")
    assert sorted(os.listdir(folder)) == ["cluster_coordinator.log", "cluster_network.log", "model_scheduler.log"]
    for part, of in [
        ("cluster_coordinator", "coordinator"),
        ("model_scheduler", "scheduler"),
        ("cluster_network", "network"),
    ]:
        (line,) = text(folder, part).splitlines()
        assert line.endswith(f"of the {of}")
    assert folder.stat().st_mode & 0o777 == 0o700
    assert (folder / "model_scheduler.log").stat().st_mode & 0o077 == 0
    open_logs(LogSettings(folder=str(folder)), parts(3))
    OWN.info("of a worker")
    logging.getLogger(NETWORK).debug("not wanted")
    assert text(folder, "cluster_worker-3").endswith("INFO of a worker\n")
    assert not (folder / "cluster_network-3.log").exists()
    assert "worker" not in text(folder, "cluster_coordinator")


def test_without_a_folder_warnings_go_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    open_logs(LogSettings(), parts(0))
    assert not in_files()
    OWN.info("quiet")
    OWN.warning("loud")
    logging.getLogger(SCHEDULER).warning("loud too")
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(" ", 2)[2] for line in lines] == ["WARNING loud", "WARNING loud too"]


def test_levels_change_while_it_runs(tmp_path: Path) -> None:
    open_logs(LogSettings(folder=str(tmp_path), level="error"), parts(1))
    for level in ("debug", "error", "info"):
        set_level(level)
        for name in ("debug", "info", "warning", "error"):
            getattr(OWN, name)(f"{name} at {level}")
    told = [line.split(" ", 3)[3] for line in text(tmp_path, "cluster_worker-1").splitlines()]
    assert [line for line in told if line.endswith(" debug")] == [
        f"{n} at debug" for n in ("debug", "info", "warning", "error")
    ]
    assert [line for line in told if line.endswith(" error")] == ["error at error"]
    assert [line for line in told if line.endswith(" info")] == [f"{n} at info" for n in ("info", "warning", "error")]


def test_json_lines_hold_what_text_does(tmp_path: Path) -> None:
    open_logs(LogSettings(folder=str(tmp_path), format="json"), parts(0))
    OWN.warning('a "line"\nand %s', "another\x1b[0m")
    try:
        raise ValueError("broken")
    except ValueError:
        OWN.exception("it failed", extra={"request": "req_1 "})
    first, second = map(json.loads, text(tmp_path, "cluster_coordinator").splitlines())
    assert first.pop("time").endswith("Z")
    assert first == {
        "level": "warning",
        "part": "cluster_coordinator",
        "logger": "ollampi.mpiruntime.runner",
        "message": 'a "line"\nand another\x1b[0m',
    }
    assert (second["level"], second["message"], second["request"]) == ("error", "it failed", "req_1")
    assert second["traceback"].endswith("ValueError: broken")


def test_text_holds_nothing_that_steers_a_terminal(tmp_path: Path) -> None:
    open_logs(LogSettings(folder=str(tmp_path)), parts(0))
    OWN.warning("red \x1b[31m and\rback")
    assert text(tmp_path, "cluster_coordinator").endswith("WARNING red \\x1b[31m and\\x0dback\n")


@pytest.mark.parametrize("form", ["text", "json"])
def test_names_that_are_no_unicode_are_logged(tmp_path: Path, form: str, capsys: pytest.CaptureFixture[str]) -> None:
    open_logs(LogSettings(folder=str(tmp_path), format=form), parts(0))
    record = OWN.makeRecord(OWN.name, logging.INFO, "", 0, "%s loaded", (os.fsdecode(b"model-\xff"),), None)
    for handler in logging.getLogger().handlers:
        if not type(handler).__module__.startswith("_pytest"):  # whose copy of the line xdist could not send
            handler.handle(record)
    assert "model-\\udcff loaded" in text(tmp_path, "cluster_coordinator")
    assert capsys.readouterr().err == ""


def test_files_are_rotated_by_size_and_count(tmp_path: Path) -> None:
    open_logs(LogSettings(folder=str(tmp_path), max_bytes=1024, files=3), parts(2))
    for number in range(200):
        OWN.warning("line %d of many, long enough to fill a file soon", number)
    assert sorted(os.listdir(tmp_path)) == [f"cluster_worker-2.log{end}" for end in ("", ".1", ".2")]
    assert all(path.stat().st_size <= 1024 for path in tmp_path.iterdir())
    assert "line 199 " in text(tmp_path, "cluster_worker-2")


@pytest.mark.parametrize("blocked", ["folder", "file"])
def test_a_folder_that_cannot_be_written_is_named_with_the_remedy(tmp_path: Path, blocked: str) -> None:
    folder = tmp_path / "logs"
    if blocked == "folder":
        folder.write_text("")
    else:
        (folder / "api_server.log").mkdir(parents=True)
    match = rf"^logging\.folder is {folder}, where api_server\.log cannot be written: .*; give a folder .*, or null for"
    with pytest.raises(ConfigError, match=match):
        check_folder(LogSettings(folder=str(folder)))
    with pytest.raises(ConfigError, match=match):
        open_logs(LogSettings(folder=str(folder)), API)
    assert not in_files()


def test_a_full_disk_is_said_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    open_logs(LogSettings(folder=str(tmp_path)), parts(1))

    def full(_: object, record: object) -> bool:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(logging.handlers.RotatingFileHandler, "shouldRollover", full)
    OWN.error("one")
    OWN.error("two")
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("cluster_worker-1.log cannot be written: [Errno 28] No space left on device")


@pytest.mark.parametrize("size", [1, 2])
def test_a_logged_communicator_gives_what_the_one_beneath_does(size: int, caplog: pytest.LogCaptureFixture) -> None:
    def work(comm: Communicator) -> list[object]:
        logged = Logged(comm)
        x = torch.arange(6.0).reshape(2, 3) + comm.rank
        wait = logged.all_reduce_later(x)
        found: list[object] = [logged.all_reduce(x).tolist(), wait().tolist()]
        found.append(logged.share_rows(x, torch.zeros(2, dtype=torch.int64)).tolist())
        gathered = logged.gather(x)
        found.append(None if gathered is None else list(gathered.shape))
        found += [logged.broadcast(b"m" if comm.rank == 0 else None), logged.collect(b"c")]
        logged.share(x)
        if comm.rank:
            found.append(logged.hear())
            logged.answer(b"yes")
        else:
            logged.tell(b"do", range(1, size))
            found.append(b"do")
        return [*found, x.tolist()]

    with caplog.at_level(logging.DEBUG, NETWORK):
        found = run_threads(size, work)
    rows = torch.arange(6.0).reshape(2, 3)
    total = sum(((rows + rank) for rank in range(size)), torch.zeros(2, 3)).tolist()
    for rank, each in enumerate(found):
        gathered = [2, 3 * size] if rank == 0 else None
        assert each == [total, total, rows.tolist(), gathered, b"m", [b"c"] * size, b"do", rows.tolist()]
    kinds = {record.getMessage().split(" of ")[0] for record in caplog.records if record.name == NETWORK}
    assert kinds == {
        *("all_reduce", "all_reduce begins", "all_reduce ends", "share_rows", "gather"),
        *("broadcast", "collect", "share", "tell"),
        *(("hear", "answer") if size > 1 else ()),
    }
    assert Logged(Single()).size == 1
