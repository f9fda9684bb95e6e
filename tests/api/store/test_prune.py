"""What goes from a store because nothing names it, and what stays."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys

import pytest
from support.stores import aged, blob_contents, manifest_of, named

from ollampi.api.store import process
from ollampi.api.store.digest import digest_of
from ollampi.api.store.files import temporary_name


def test_removing_leaves_what_others_name_and_no_empty_folders(local, root):
    local.write(named("me/a"), manifest_of(local, b"shared", b"license a"))
    local.write(named("me/b"), manifest_of(local, b"shared", b"license b"))
    assert local.remove(named("ME/A"))
    assert blob_contents(root) == {b"shared", b"license b", b"{}"}
    assert not (root / "manifests/registry.ollama.ai/me/a").exists()
    assert local.remove(named("me/b"))
    assert not local.remove(named("me/b"))
    assert blob_contents(root) == set()
    assert list((root / "manifests").iterdir()) == []


def test_an_overwritten_model_gives_its_blobs_back(local, root):
    local.write(named("a"), manifest_of(local, b"old", b"license"))
    local.write(named("a"), manifest_of(local, b"new", b"license"))
    assert blob_contents(root) == {b"new", b"license", b"{}"}


def test_uploaded_blobs_have_an_hour_and_downloads_a_day(local, root):
    young, old = local.blobs.put([b"young"]), local.blobs.put([b"old"])
    aged(local.blobs.path(old), 3700)
    wanted = digest_of(hashlib.sha256(b"abc"))
    with local.downloading(wanted, 3) as partial:
        partial.write(b"a")
    (part,) = (root / "blobs").glob("*.partial")
    litter = root / "blobs" / ".writing-dead"
    litter.write_text("")
    for age, left in ((3700, True), (90_000, False)):
        aged(part, age)
        aged(litter, age)
        local.prune()
        assert (part.exists(), litter.exists()) == (left, left)
    assert (local.blobs.has(young), local.blobs.has(old)) == (True, False)


def test_nothing_is_pruned_where_ollama_would_not(local, root, monkeypatch):
    monkeypatch.setenv("OLLAMA_NOPRUNE", "1")
    local.write(named("a"), manifest_of(local, b"w"))
    local.remove(named("a"))
    assert b"w" in blob_contents(root)
    monkeypatch.setenv("OLLAMA_NOPRUNE", "false")
    for path in (root / "blobs").glob("sha256-*"):
        aged(path, 3700)
    local.prune()
    assert blob_contents(root) == set()


def test_blobs_that_are_kept_stay(local, root):
    digest = local.blobs.put([b"w"])
    aged(local.blobs.path(digest), 90_000)
    for hold in (local.keeping, local.reading):
        with hold([digest]):
            local.prune()
            assert local.blobs.has(digest)
    local.prune()
    assert not local.blobs.has(digest)
    assert list((root / "blobs").iterdir()) == []


def test_what_was_written_since_a_lease_was_taken_stays(local, root):
    with local.keeping([]):
        local.write(named("a"), manifest_of(local, b"w"))
        local.remove(named("a"))
        assert b"w" in blob_contents(root)  # the holder may be about to name it too


@pytest.mark.parametrize("damage", [b"{", b'{"x": "sha256-%s"}', b'"\\u0073ha256:%s sha256:%s"'])
def test_what_a_manifest_that_we_cannot_read_names_stays(damage, local, root):
    digest = local.blobs.put([b"w"])
    aged(local.blobs.path(digest), 90_000)
    text = damage.replace(b"%s", digest.hex.encode())
    path = root / "manifests" / "some" / "new-layout"
    path.parent.mkdir(parents=True)
    path.write_bytes(text)
    local.prune()
    assert local.blobs.has(digest) == (digest.hex.encode() in text)


def test_blobs_of_newer_versions_of_ollama_stay(local, root):
    """They keep links to manifests, which are blobs and may be lists of manifests."""
    weights = local.blobs.put([b"weights"])
    child = local.blobs.put([b'{"schemaVersion":2,"layers":[{"digest":"%s"}]}' % weights.encode()])
    parent = local.blobs.put([b'{"schemaVersion":2,"manifests":[{"digest":"%s"}]}' % child.encode()])
    for digest in (weights, child, parent):
        aged(local.blobs.path(digest), 90_000)
    link = root / "manifests-v2" / "ollama.com" / "library" / "a" / "latest"
    link.parent.mkdir(parents=True)
    link.symlink_to(local.blobs.path(parent))
    local.prune()
    assert all(local.blobs.has(digest) for digest in (weights, child, parent))
    local.write(named("a"), manifest_of(local, b"ours"))  # Ollama would go on taking the link for the model
    assert not (root / "manifests-v2" / "ollama.com").exists()


def test_temporary_files_of_a_process_that_is_gone_go_at_once(local, root):
    code = (
        "import os, signal, sys; from pathlib import Path; from ollampi.api.store.local import LocalStore;"
        "made = LocalStore(Path(sys.argv[1])).blobs.temporary().__enter__(); made.write_bytes(b'half');"
        "made.parent.with_name('views').mkdir(); (made.parent.with_name('views') / made.name).mkdir();"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", code, str(root)], check=False)
    (left,) = (root / "blobs").iterdir()
    own = temporary_name(root / "blobs")
    elsewhere = left.with_name(f"{left.name.rpartition('.')[0]}.ffffffffffff-{'0' * 16}")
    for path in (own, elsewhere):
        path.write_bytes(b"")
    local.prune()
    assert set((root / "blobs").iterdir()) == {own, elsewhere}  # of a live process, of another machine
    assert list((root / "views").iterdir()) == []


def test_a_process_that_may_not_be_looked_at_is_there(monkeypatch):
    monkeypatch.setattr(process, "start_of", lambda pid: "")

    def refuse(pid, number):
        raise PermissionError

    monkeypatch.setattr(os, "kill", refuse)
    assert not process.has_ended(os.getpid(), "5")
    monkeypatch.undo()
    assert process.has_ended(2**22 + 1, "5")  # above any number of a process
    assert process.has_ended(os.getpid(), "5")
