"""The layout of the store on disk: what is written where, for whom, and what goes again."""

from __future__ import annotations

import errno
import hashlib
import os

import pytest
from support.stores import manifest_of, named, put

from ollampi.api.errors import ApiError
from ollampi.api.names import Name
from ollampi.api.store.digest import Digest, digest_of
from ollampi.api.store.local import LocalStore
from ollampi.api.store.manifest import CONFIG_TYPE, JSON_TYPE, Manifest
from ollampi.mpiruntime.errors import ModelError


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("llama3", "registry.ollama.ai/library/llama3/latest"),
        ("me/llama3:8B-q4_K_M", "registry.ollama.ai/me/llama3/8B-q4_K_M"),
        ("hf.co/bartowski/Llama-3.2-1B-GGUF:Q4_0", "hf.co/bartowski/Llama-3.2-1B-GGUF/Q4_0"),
        ("localhost:5000/me/x", "localhost:5000/me/x/latest"),
    ],
)
def test_a_manifest_lies_where_ollama_looks_for_it(text, path, local, root):
    manifest = manifest_of(local, b"weights")
    local.write(named(text), manifest)
    assert (root / "manifests" / path).read_bytes() == manifest.encode()
    assert (root / "blobs" / f"sha256-{hashlib.sha256(b'weights').hexdigest()}").read_bytes() == b"weights"
    assert [name.short for name in local.names()] == [named(text).short]
    assert local.read(named(text.upper().replace("LATEST", "latest"))) == manifest


def test_a_missing_root_is_an_empty_store_until_the_first_write(local, root):
    assert local.names() == []
    assert local.read(named("a")) is None
    assert not local.blobs.has(Digest("sha256:" + "0" * 64))
    assert not root.parent.exists()
    local.blobs.put([b"x"])
    assert root.is_dir()


def test_files_are_for_all_users_whatever_the_umask(local, root):
    before = os.umask(0o077)
    try:
        layer = put(local, b"{}", JSON_TYPE, "sub/config.json")
        local.write(named("me/a"), Manifest(put(local, b"1", CONFIG_TYPE), (layer,)))
    finally:
        os.umask(before)
    folders = [root, *(path for path in root.rglob("*") if path.is_dir() and not path.is_symlink())]
    assert {path.stat().st_mode & 0o777 for path in folders} == {0o755}
    assert {path.stat().st_mode & 0o777 for path in root.rglob("*") if path.is_file()} == {0o644}


def test_case_counts_only_between_two_names_that_are_both_there(local, root, put_model):
    local.write(named("Foo/Bar:Q8"), manifest_of(local, b"1"))
    local.write(named("foo/bar:q8"), manifest_of(local, b"2"))
    assert len(local.names()) == 1
    put_model("registry.ollama.ai/foo/bar/q8", ("model", b"3"))
    sizes = [local.read(named(text)).layers[0].digest for text in ("Foo/Bar:Q8", "foo/bar:q8")]
    assert sizes == [digest_of(hashlib.sha256(content)) for content in (b"2", b"3")]


@pytest.mark.parametrize(
    "parts",
    [("..", "..", "x", "y"), ("h", "..", "x", "y"), ("h", "a", "../../x", "y"), ("h", "a", "b", "../../../../x"),
     ("h:99", "..", "x", "latest"), ("", "a", "b", "c"), ("h", "a", "b", ".hidden"), ("h", "a", "b", "c\0")],
)  # fmt: skip
def test_names_that_leave_the_store_are_refused(parts, local, tmp_path):
    canary = tmp_path / "x"
    canary.write_text("here")
    for action in (lambda: local.write(Name(*parts), manifest_of(local, b"w")), lambda: local.remove(Name(*parts))):
        with pytest.raises(ApiError, match=r"^invalid model name$"):
            action()
    assert canary.read_text() == "here"


def test_what_is_no_model_is_not_listed(local, root, put_model):
    put_model("registry.ollama.ai/library/good/latest", ("model", b"w"))
    base = root / "manifests" / "registry.ollama.ai" / "library"
    for path in (base / "good" / ".writing-1", base / "good" / ".DS_Store", base / "a b" / "latest", base / "stray"):
        path.parent.mkdir(exist_ok=True)
        path.write_text("{")
    (base / "good" / "folder").mkdir()
    (base / "good" / "dangling").symlink_to("nowhere")
    assert [name.short for name in local.names()] == ["good:latest"]


def test_a_damaged_manifest_is_named_and_can_be_removed(local, root, put_model):
    put_model("registry.ollama.ai/library/bad/latest", ("model", b"w"))
    (root / "manifests/registry.ollama.ai/library/bad/latest").write_text("{")
    with pytest.raises(ModelError, match="model bad:latest: the manifest is not valid JSON"):
        local.read(named("bad"))
    assert local.remove(named("bad"))
    assert local.names() == []


def test_a_manifest_is_written_only_with_all_its_blobs(local, root):
    manifest = manifest_of(local, b"weights")
    local.blobs.path(manifest.layers[0].digest).write_bytes(b"weight")
    with pytest.raises(ApiError, match="has 6 bytes"):
        local.write(named("a"), manifest)
    local.blobs.path(manifest.layers[0].digest).unlink()
    with pytest.raises(ApiError, match="is missing"):
        local.write(named("a"), manifest)
    assert local.names() == []


def test_a_store_that_must_not_be_written_is_read_and_refuses_writes(root, local):
    local.write(named("a"), manifest_of(local, b"w"))
    before = sorted((path, path.stat().st_mtime_ns) for path in root.rglob("*"))
    fixed = LocalStore(root, is_read_only=True)
    assert fixed.read(named("A")) == local.read(named("a"))
    manifest = fixed.read(named("a"))
    actions = [
        lambda: fixed.blobs.put([b"x"]), lambda: fixed.write(named("b"), manifest), lambda: fixed.remove(named("a")),
        lambda: fixed.prune(), lambda: fixed.lock().__enter__(), lambda: fixed.keeping([]).__enter__(),
        lambda: fixed.downloading(manifest.config.digest, 1).__enter__(),
    ]  # fmt: skip
    for action in actions:
        with pytest.raises(ApiError, match=r"read-only.*OLLAMA_MODELS") as caught:
            action()
        assert caught.value.status == 403
        assert str(root) not in str(caught.value)
    with fixed.reading([manifest.config.digest]):
        pass
    assert sorted((path, path.stat().st_mtime_ns) for path in root.rglob("*")) == before


@pytest.mark.parametrize(
    ("number", "status", "text"),
    [(errno.EROFS, 403, "read-only"), (errno.EACCES, 403, "read-only"), (errno.ENOSPC, 500, "no space left"),
     (errno.EDQUOT, 500, "no space left"), (errno.EIO, 500, "Input/output error")],
)  # fmt: skip
def test_what_the_system_refuses_is_said_without_paths(number, status, text, local, root, monkeypatch):
    manifest = manifest_of(local, b"w")
    real = os.open

    def refuse(path, flags, *rest, **more):
        if flags & os.O_CREAT:
            raise OSError(number, os.strerror(number), str(path))
        return real(path, flags, *rest, **more)

    monkeypatch.setattr(os, "open", refuse)
    for action in (lambda: local.blobs.put([b"x"]), lambda: local.write(named("b"), manifest), local.prune):
        with pytest.raises(ApiError, match=text) as caught:
            action()
        assert caught.value.status == status
        assert str(root) not in str(caught.value)


def test_a_full_disk_leaves_nothing_behind(local, root, monkeypatch):
    local.blobs.put([b"there"])
    before = sorted(root.rglob("*"))

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(ApiError, match="no space left"):
            local.blobs.put([b"more"])
    assert sorted(root.rglob("*")) == before
    local.blobs.put([b"more"])


def test_a_blob_of_another_digest_is_refused_in_ollamas_words(local, root):
    expected, found = digest_of(hashlib.sha256(b"a")), digest_of(hashlib.sha256(b"b"))
    with pytest.raises(ApiError) as caught:
        local.blobs.put([b"b"], expected)
    assert (caught.value.status, str(caught.value)) == (
        400, f'digest mismatch, expected "{expected}", got "{found}"',
    )  # fmt: skip
    assert list((root / "blobs").iterdir()) == []


def test_a_source_that_breaks_off_leaves_nothing(local, root):
    def chunks():
        yield b"a"
        raise ConnectionError("gone")

    with pytest.raises(ConnectionError):
        local.blobs.put(chunks())
    assert list((root / "blobs").iterdir()) == []


def test_a_download_goes_on_where_it_stopped(local, root):
    content = os.urandom(3000)
    digest = digest_of(hashlib.sha256(content))
    for end in (1000, 1500):
        with local.downloading(digest, 3000) as partial:
            partial.write(content[partial.size_there : end])
        assert not local.blobs.has(digest)
    with local.downloading(digest, 3000) as partial:
        assert partial.size_there == 1500
        partial.write(content[1500:])
        partial.finish()
    assert local.blobs.path(digest).read_bytes() == content
    assert [path.name for path in (root / "blobs").iterdir()] == [digest.file_name]


@pytest.mark.parametrize("wrong", [b"y" * 10, b"x" * 9])
def test_a_download_of_other_bytes_starts_again(wrong, local):
    digest = digest_of(hashlib.sha256(b"x" * 10))
    with local.downloading(digest, 10) as partial:
        partial.write(wrong)
        with pytest.raises(ApiError, match=f"{digest} with 10 bytes was expected, sha256:.* with {len(wrong)} bytes"):
            partial.finish()
        assert partial.size_there == 0
        partial.write(b"x" * 10)
        with pytest.raises(ApiError, match="more than the 10 bytes"):
            partial.write(b"x")
        partial.finish()
    assert local.blobs.size(digest) == 10


def test_a_blob_is_downloaded_once_at_one_time(local):
    digest = digest_of(hashlib.sha256(b"x"))
    with local.downloading(digest, 1):
        with pytest.raises(ApiError, match=f"another process downloads {digest}: process {os.getpid()} on") as caught:
            local.downloading(digest, 1, wait_s=0).__enter__()
        assert caught.value.status == 503
