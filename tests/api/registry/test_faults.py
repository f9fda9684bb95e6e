"""What a registry can do wrong: the pull goes on, or ends with one clear error and a store as before."""

from __future__ import annotations

import os
import random
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from support.pulls import BIG, MIB, QUICK, SMALL, Pull, bytes_of, named, partials
from support.registry import Registry, digest_of
from support.registry_routes import zeros_compressed

from ollampi.api.errors import ApiError
from ollampi.api.registry.hosts import Hosts, origin_of
from ollampi.api.registry.pull import pull
from ollampi.api.registry.remote import Remote
from ollampi.api.registry.streams import Streams
from ollampi.api.registry.transfer import Cancel, TransferOptions
from ollampi.api.registry.web import Web
from ollampi.api.store.digest import parse_digest
from ollampi.api.store.local import LocalStore

BLOB = digest_of(BIG)
PIECES = f"GET .*{BLOB}"


def is_whole(registry: Registry, store: LocalStore) -> bool:
    return bytes_of(store, f"{registry.host}/library/m") == [BIG, SMALL] and not partials(store)


@pytest.mark.parametrize("seed", range(5))
def test_drops_at_random_bytes(registry: Registry, store: LocalStore, pulled: Pull, seed: int) -> None:
    draw = random.Random(seed)
    for _ in range(12):
        registry.fail(PIECES, "drop", draw.randrange(4 * MIB))
    assert pulled(limits=replace(QUICK, num_tries=20))[-1] == {"status": "success"}
    assert is_whole(registry, store)


@pytest.mark.parametrize("num_bytes", [0, 1, len(SMALL) - 1])
def test_a_drop_in_a_small_blob(registry: Registry, store: LocalStore, pulled: Pull, num_bytes: int) -> None:
    registry.fail(digest_of(SMALL), "drop", num_bytes, times=5)
    pulled()
    assert is_whole(registry, store)


def test_a_drop_in_the_manifest(registry: Registry, store: LocalStore, pulled: Pull) -> None:
    registry.fail("/manifests/", "drop", 10, times=5)
    pulled()
    assert is_whole(registry, store)


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_a_server_that_is_busy_for_a_while(registry: Registry, store: LocalStore, pulled: Pull, status: int) -> None:
    registry.fail("/manifests/", "status", status, times=2)
    registry.fail(PIECES, "status", status, times=5)
    pulled()
    assert is_whole(registry, store)


def test_a_server_that_says_when_to_ask_again(registry: Registry, store: LocalStore, pulled: Pull) -> None:
    registry.fail(PIECES, "status", 429, Retry_After="0")
    pulled(limits=replace(QUICK, first_delay_s=1e6, max_delay_s=1e6))
    assert is_whole(registry, store)


def test_a_server_that_stays_broken(registry: Registry, store: LocalStore, pulled: Pull) -> None:
    registry.fail(PIECES, "status", 500, times=1000)
    with pytest.raises(ApiError, match=r"answered 500, 6 times; try again later") as caught:
        pulled(num_streams=1)
    assert caught.value.status == 500
    assert len(registry.lines(BLOB)) == 6
    assert store.read(named(f"{registry.host}/library/m")) is None


def test_a_connection_that_never_comes_about(registry: Registry, pulled: Pull) -> None:
    registry.close()
    with pytest.raises(ApiError, match=r"^pull model manifest: .* cannot be reached \(NewConnectionError\), 6 times"):
        pulled()


def test_a_stall_is_a_drop(registry: Registry, store: LocalStore, pulled: Pull) -> None:
    registry.fail(PIECES, "stall", 100_000, times=3)
    pulled()
    assert is_whole(registry, store)


def test_wrong_bytes_are_not_kept(registry: Registry, store: LocalStore, pulled: Pull) -> None:
    registry.fail(PIECES, "flip", 1000)
    with pytest.raises(ApiError, match=rf"digest mismatch: {BLOB} .*pull the model again"):
        pulled()
    assert not store.blobs.has(parse_digest(BLOB))
    pulled()
    assert is_whole(registry, store)


def test_a_partial_file_that_is_damaged_is_fetched_anew(registry: Registry, store: LocalStore, pulled: Pull) -> None:
    registry.fail(PIECES + ".*", "status", 404)
    with pytest.raises(ApiError):
        pulled(num_streams=1)
    (partial,) = partials(store)
    partial.write_bytes(bytes(5 * MIB))
    pulled()
    assert is_whole(registry, store)


@pytest.mark.parametrize("num_more", [-1, 1, 1 << 40])
def test_a_size_that_is_a_lie(registry: Registry, store: LocalStore, pulled: Pull, num_more: int) -> None:
    registry.fail(PIECES, "length", num_more, times=100)
    with pytest.raises(ApiError, match=r"bytes where .* were announced"):
        pulled()
    assert store.read(named(f"{registry.host}/library/m")) is None


@pytest.mark.parametrize("body", [BIG[:-1], BIG + b"x"])
def test_a_blob_of_another_size(registry: Registry, pulled: Pull, body: bytes) -> None:
    registry.path(BLOB).write_bytes(body)
    with pytest.raises(ApiError, match=r"other bytes than asked for|were announced"):
        pulled()


def test_ranges_that_are_ignored(registry: Registry, store: LocalStore, pulled: Pull) -> None:
    registry.fail(PIECES, "whole", times=1000)
    pulled()
    assert is_whole(registry, store)


def test_ranges_that_are_ignored_after_a_while(registry: Registry, store: LocalStore, pulled: Pull) -> None:
    registry.fail(PIECES, "drop", 4 * MIB, times=2)  # no fault, but two good answers first
    registry.fail(PIECES, "whole", times=1000)
    pulled(num_streams=1)
    assert is_whole(registry, store)


@pytest.mark.parametrize("what", ["/manifests/", PIECES, f"GET .*{digest_of(SMALL)}"])
def test_what_comes_compressed_is_not_read(registry: Registry, store: LocalStore, pulled: Pull, what: str) -> None:
    zeros_compressed(100 * MIB)
    registry.fail(what, "gzip", 100 * MIB, times=100)
    with pytest.raises(ApiError, match="came compressed"):
        pulled()
    assert not [path for path in partials(store) if path.stat().st_size > len(BIG)]


def test_a_pull_goes_on_where_one_broke_off(registry: Registry, store: LocalStore, pulled: Pull) -> None:
    registry.fail(f"{PIECES}", "drop", 4 * MIB, times=3)
    registry.fail(PIECES, "status", 404)
    with pytest.raises(ApiError, match="cannot be had"):
        pulled(num_streams=1)
    assert [path.stat().st_size for path in partials(store)] == [12 * MIB]
    registry.seen.clear()
    lines = pulled()
    assert next(line for line in lines if line.get("digest") == BLOB and "completed" in line)["completed"] >= 12 * MIB
    assert len(registry.lines(BLOB)) == 3
    assert is_whole(registry, store)


def test_pieces_do_not_pile_up(registry: Registry) -> None:
    """However slow a disk is: two pieces for each stream are in memory, and no third is asked for."""
    cancel = Cancel()
    web = Web(Hosts((registry.url,)), cancel, QUICK, 2)
    file = Remote(web, origin_of(registry.url), "library/m").blob(parse_digest(BLOB), len(BIG))
    pieces = iter(Streams(file, 0, 1, cancel, QUICK))
    assert bytes(next(pieces)) == BIG[: 4 * MIB]
    while len(registry.lines(BLOB)) < 2:
        time.sleep(0.01)
    time.sleep(0.2)
    assert len(registry.lines(BLOB)) == 2
    assert b"".join(map(bytes, pieces)) == BIG[4 * MIB :]
    web.close()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small tmpfs")
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=32m", "none", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_model_that_cannot_fit_is_not_begun(registry: Registry, small_disk: Path, options: TransferOptions) -> None:
    (small_disk / "other").write_bytes(bytes(20 * MIB))
    store = LocalStore(small_disk / "store")
    with pytest.raises(ApiError, match="no space left on device"):
        list(pull(store, named(f"{registry.host}/library/m"), options))
    assert not registry.lines("/blobs/")


def test_a_disk_that_becomes_full(registry: Registry, small_disk: Path, options: TransferOptions) -> None:
    store, name = LocalStore(small_disk / "store"), named(f"{registry.host}/library/m")
    lines = pull(store, name, options)
    other = small_disk / "other"
    while "digest" not in next(lines):
        pass
    other.write_bytes(bytes(20 * MIB))
    with pytest.raises(ApiError, match="no space left on device"):
        list(lines)
    assert os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_frsize >= MIB // 2
    with store.lock():  # which takes a file: whoever frees space must be able to
        (partial,) = partials(store)
    assert partial.stat().st_size > 4 * MIB
    assert BIG.startswith(partial.read_bytes())
    other.unlink()
    assert list(pull(store, name, options))[-1] == {"status": "success"}
    assert is_whole(registry, store)
