"""One writer at a time, also where writers die, stand still, or run on other hosts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from ollampi.api.errors import ApiError
from ollampi.api.store import lease
from ollampi.api.store.lease import Lease, holder_of, remove_stale
from ollampi.api.store.local import LocalStore


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "lock"


def rewrite(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_a_lease_is_held_by_one_and_names_its_holder(path):
    first = Lease(path, ("a", "b"))
    with pytest.raises(FileExistsError):
        Lease(path)
    holder = holder_of(path)
    assert holder is not None
    assert (holder.pid, holder.content, holder.is_stale) == (os.getpid(), ("a", "b"), False)
    assert 0 <= holder.taken_s < 60
    assert not remove_stale(path)
    first.release()
    assert holder_of(path) is None
    assert list(path.parent.iterdir()) == []
    Lease(path).release()


def test_the_lease_of_a_killed_process_is_removed_at_once(path):
    code = "import os, signal, sys; from pathlib import Path; from ollampi.api.store.lease import Lease;"
    code += "Lease(Path(sys.argv[1])); os.kill(os.getpid(), signal.SIGKILL)"
    subprocess.run([sys.executable, "-c", code, str(path)], check=False)
    holder = holder_of(path)
    assert holder is not None
    assert holder.is_stale
    assert remove_stale(path)
    Lease(path).release()


@pytest.mark.parametrize(
    ("changes", "age_s", "is_stale"),
    [
        ({"place": "another host's", "pid": 1}, 5, False),
        ({"place": "another host's", "pid": 1}, 65, True),
        ({"started": "1"}, 0, True),  # the number of the process was given again
        ({"place": ""}, 5, False),
        ({}, 65, True),  # it stood still
    ],
)
def test_a_lease_is_stale_by_its_process_or_by_its_age(changes, age_s, is_stale, path):
    held = Lease(path)
    rewrite(path, **changes)
    os.utime(path, (time.time() - age_s,) * 2)
    holder = holder_of(path)
    assert holder is not None
    assert holder.is_stale == is_stale
    held.release()


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"pid": "x", "content": [5]}', b"[" * 100_000])
def test_a_file_that_is_no_lease_is_one_of_somebody_unknown(content, path):
    path.write_bytes(content)
    holder = holder_of(path)
    assert holder is not None
    assert not holder.is_stale
    assert "an unknown process" in str(holder)
    os.utime(path, (0, 0))
    assert remove_stale(path)


def test_a_lease_is_renewed_while_it_is_held(path, monkeypatch):
    monkeypatch.setattr(lease, "RENEW_S", 0.01)
    held = Lease(path)
    os.utime(path, (0, 0))
    deadline = time.monotonic() + 20
    while path.stat().st_mtime == 0 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert path.stat().st_mtime > 0
    held.release()


def test_whoever_lost_the_lease_neither_has_it_nor_removes_the_next(path):
    first = Lease(path)
    path.unlink()
    second = Lease(path)
    assert not first.is_held()
    first.release()
    assert second.is_held()
    second.release()


def test_without_hard_links_there_is_one_holder_too(path, monkeypatch):
    def refuse(*_):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    held = Lease(path)
    with pytest.raises(FileExistsError):
        Lease(path)
    held.release()
    assert list(path.parent.iterdir()) == []


def test_of_many_threads_one_writes_at_a_time(root):
    local = LocalStore(root)
    inside, most = [], []

    def work():
        for _ in range(5):
            with local.lock(), local.lock():  # a thread that has it keeps it
                inside.append(1)
                most.append(len(inside))
                inside.pop()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 20


def test_waiting_has_an_end_that_names_the_owner_and_its_age(root):
    local, other = LocalStore(root), LocalStore(root, lock_wait_s=0.1)
    with local.lock():
        thread_error: list[BaseException] = []

        def work():
            try:
                other.lock().__enter__()
            except ApiError as e:
                thread_error.append(e)

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    (error,) = thread_error
    assert isinstance(error, ApiError)
    assert error.status == 503
    assert f"process {os.getpid()} on " in str(error)
    assert "s ago" in str(error)
    assert str(root) not in str(error)


def test_a_writer_that_lost_the_lock_writes_nothing(root, put_model):
    put_model("registry.ollama.ai/library/a/latest", ("model", b"w"))
    local = LocalStore(root)
    (name,) = local.names()
    with local.lock():
        (root / "ollampi.lock").unlink()  # somebody took it for dead
        taken = Lease(root / "ollampi.lock")
        with pytest.raises(ApiError, match="another process took the lock"):
            local.remove(name)
        taken.release()
    assert local.names() == [name]


def test_a_dead_writers_lock_is_broken_on_the_way(root):
    code = "import os, signal, sys; from pathlib import Path; from ollampi.api.store.local import LocalStore;"
    code += "held = LocalStore(Path(sys.argv[1])).lock(); held.__enter__(); os.kill(os.getpid(), signal.SIGKILL)"
    subprocess.run([sys.executable, "-c", code, str(root)], check=False)
    assert (root / "ollampi.lock").exists()
    local = LocalStore(root, lock_wait_s=1)
    digest = local.blobs.put([b"x"])
    with local.keeping([digest]):
        pass
    assert not (root / "ollampi.lock").exists()
