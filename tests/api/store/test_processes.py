"""Several processes and threads on one store: none loses what another wrote, and death leaves nothing half done."""

from __future__ import annotations

import multiprocessing
import random
from pathlib import Path

import pytest
from support.store_kills import kill_writers

from ollampi.api.names import Name, parse_name
from ollampi.api.store.digest import Digest
from ollampi.api.store.local import LocalStore
from ollampi.api.store.manifest import CONFIG_TYPE, LICENSE_TYPE, MODEL_TYPE, Layer, Manifest
from ollampi.api.store.verify import verify

NAMES = ["a", "A:2", "me/b", "host:99/me/c:x"]


def named(text: str) -> Name:
    name = parse_name(text)
    assert name is not None
    return name


def put(local: LocalStore, media_type: str, content: bytes) -> Layer:
    return Layer(media_type, local.blobs.put([content]), len(content))


def write(local: LocalStore, text: str, *contents: bytes) -> Manifest:
    """Write a model whose blobs are kept until it is there."""
    with local.keeping([]):
        layers = [put(local, kind, each) for kind, each in zip((MODEL_TYPE, LICENSE_TYPE), contents, strict=False)]
        manifest = Manifest(put(local, CONFIG_TYPE, b"{}"), tuple(layers))
        local.write(named(text), manifest)
    return manifest


def work(root: Path, seed: int) -> None:
    """Write and remove models of one's own, and one that all share."""
    local, chance = LocalStore(root), random.Random(seed)
    for number in range(6):
        write(local, f"own/p{seed}:{number % 3}", f"weights {number % 2}".encode(), f"{seed} {number}".encode())
        write(local, "shared", b"weights 0", f"{chance.random()}".encode())
        if number % 3 == 2:
            local.remove(named(f"own/p{seed}:{chance.randrange(3)}"))
    write(local, f"own/p{seed}:last", b"weights 1", f"last of {seed}".encode())


def test_writers_in_several_processes_lose_nothing(root):
    start = multiprocessing.get_context("spawn")
    processes = [start.Process(target=work, args=(root, seed)) for seed in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    local = LocalStore(root)
    names = {name.short for name in local.names()}
    assert {"own/p0:last", "own/p1:last", "own/p2:last", "shared:latest"} <= names
    findings = list(verify(local))
    assert {finding.state for finding in findings} == {"ok"}
    assert not [path for path in (root / "blobs").iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("seed", range(5))
def test_any_sequence_of_writes_leaves_what_a_dictionary_would(seed, root):
    """Blobs are those that a manifest names, and no others."""
    chance, local = random.Random(seed), LocalStore(root)
    expected: dict[str, Manifest] = {}
    for _ in range(40):
        text = chance.choice(NAMES)
        key = named(text).key
        if chance.random() < 0.6:
            contents = [chance.choice([b"w0", b"w1", b"w2"]), f"license {chance.randrange(4)}".encode()]
            layers = tuple(
                put(local, kind, each) for kind, each in zip((MODEL_TYPE, LICENSE_TYPE), contents, strict=True)
            )
            expected[key] = Manifest(put(local, CONFIG_TYPE, b"{}"), layers)
            local.write(named(text), expected[key])
        else:
            assert local.remove(named(text.upper().replace("HOST", "host"))) == (expected.pop(key, None) is not None)
        assert {name.key: local.read(name) for name in local.names()} == expected
        wanted = {digest.file_name for manifest in expected.values() for digest in manifest.blobs}
        assert {path.name for path in (root / "blobs").iterdir()} == wanted
        folders = [path for path in (root / "manifests").rglob("*") if path.is_dir()]
        assert all(any(folder.iterdir()) for folder in folders)


def test_a_blob_that_two_write_at_once_is_whole(root):
    local = LocalStore(root)
    first, second = iter([b"a" * 1000, b"b"]), iter([b"a" * 1000, b"b"])

    def slow():
        yield next(first)
        assert local.blobs.put(second) == expected
        yield next(first)

    expected = Digest(local.blobs.put([b"a" * 1000 + b"b"]))
    local.blobs.path(expected).unlink()
    assert local.blobs.put(slow()) == expected
    assert local.blobs.path(expected).read_bytes() == b"a" * 1000 + b"b"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of forks beside threads
def test_killed_writers_leave_a_whole_store(root, gguf_file, models_folder):
    outcome = kill_writers(root, gguf_file.read_bytes(), models_folder / "chatty", count=10, seed=3)
    assert sum(outcome.kills.values()) == 10
    assert outcome.wrong == []
