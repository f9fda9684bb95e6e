"""A model comes from a registry whole, or not at all."""

from __future__ import annotations

import json
import os
import threading
from dataclasses import replace

import pytest
from support.pulls import BIG, MIB, QUICK, SMALL, Pull, bytes_of, named, partials
from support.registry import Registry, digest_of

from ollampi.api.errors import ApiError
from ollampi.api.registry.pull import pull
from ollampi.api.registry.transfer import TransferOptions
from ollampi.api.store.digest import parse_digest
from ollampi.api.store.local import LocalStore


def test_the_lines_are_those_of_ollama(registry: Registry, store: LocalStore, pulled: Pull) -> None:
    lines = pulled()
    digest = digest_of(BIG)
    assert lines[0] == {"status": "pulling manifest"}
    progress = [line for line in lines if line.get("digest") == digest]
    assert progress[0] == {"status": f"pulling {digest[7:19]}", "digest": digest, "total": len(BIG)}
    assert progress[-1] == {**progress[0], "completed": len(BIG)}
    done = [line.get("completed", 0) for line in progress]
    assert done == sorted(done)
    statuses = list(dict.fromkeys(line["status"] for line in lines))
    assert [status for status in statuses if not status.startswith("pulling ")] == [
        "verifying sha256 digest",
        "writing manifest",
        "success",
    ]
    assert bytes_of(store, f"{registry.host}/library/m") == [BIG, SMALL]
    assert not partials(store)


def test_a_large_blob_comes_in_pieces(registry: Registry, pulled: Pull) -> None:
    pulled()
    asked = [headers["Range"] for line, headers in registry.seen if digest_of(BIG) in line]
    starts = sorted(int(text.removeprefix("bytes=").partition("-")[0]) for text in asked)
    assert starts == list(range(0, len(BIG), 4 * MIB))


def test_a_second_pull_fetches_no_blob(registry: Registry, pulled: Pull) -> None:
    pulled()
    registry.seen.clear()
    assert [line["status"] for line in pulled()][-2:] == ["removing unused layers", "success"]
    assert [line.split()[0] for line in registry.lines()] == ["GET"]


def test_a_new_version_takes_the_place_of_the_old_one(registry: Registry, store: LocalStore, pulled: Pull) -> None:
    pulled()
    old = store.blobs.path(parse_digest(digest_of(BIG)))
    os.utime(old, (old.stat().st_mtime - 100,) * 2)  # one as young as a writer's lease would stay
    registry.publish("library/m:latest", b"new", SMALL)
    pulled()
    assert bytes_of(store, f"{registry.host}/library/m") == [b"new", SMALL]
    assert not old.exists()


def test_two_names_share_their_blobs(registry: Registry, store: LocalStore, pulled: Pull) -> None:
    registry.publish("library/n:latest", BIG, b"else")
    pulled()
    registry.seen.clear()
    pulled("library/n")
    assert not registry.lines(digest_of(BIG))
    assert store.remove(named(f"{registry.host}/library/m"))
    assert bytes_of(store, f"{registry.host}/library/n") == [BIG, b"else"]


@pytest.mark.parametrize("damage", ["zeros", "flip", "cut", "longer"])
def test_a_damaged_blob_is_repaired(registry: Registry, store: LocalStore, pulled: Pull, damage: str) -> None:
    pulled()
    path = store.blobs.path(parse_digest(digest_of(BIG)))
    flipped = BIG[:100] + bytes([BIG[100] ^ 1]) + BIG[101:]
    path.write_bytes({"zeros": bytes(len(BIG)), "flip": flipped, "cut": BIG[:-1], "longer": BIG + b"x"}[damage])
    assert pulled()[-1] == {"status": "success"}
    assert path.read_bytes() == BIG


def test_an_empty_blob_is_one_too(registry: Registry, store: LocalStore, pulled: Pull) -> None:
    registry.publish("library/e:latest", b"", b"x")
    pulled("library/e")
    assert bytes_of(store, f"{registry.host}/library/e") == [b"", b"x"]


def test_an_unknown_model_is_told_as_ollama_does(pulled: Pull) -> None:
    with pytest.raises(ApiError, match=r"^pull model manifest: file does not exist$") as caught:
        pulled("library/unknown")
    assert caught.value.status == 500


BAD_DIGESTS = [
    "sha256:../../x",
    "sha256-" + "0" * 30 + "/../x",
    "sha256:" + "0" * 63,
    "%2e%2e",
    "sha256:\0",
    "x" * 10240,
]


@pytest.mark.parametrize("digest", BAD_DIGESTS, ids=range(len(BAD_DIGESTS)))
def test_a_digest_that_is_none_is_refused(registry: Registry, store: LocalStore, pulled: Pull, digest: str) -> None:
    layer = {"mediaType": "application/vnd.ollama.image.model", "digest": digest, "size": 3}
    registry.put_manifest("library/m:latest", [layer])
    before = sorted(store.root.parent.rglob("*"))
    with pytest.raises(ApiError, match=r"^pull model manifest: .*digest"):
        pulled()
    assert sorted(store.root.parent.rglob("*")) == before


def layer(size: object = 1, digest: str = digest_of(b"x"), **more: object) -> dict[str, object]:
    return {"mediaType": "application/vnd.ollama.image.model", "digest": digest, "size": size, **more}


BAD_MANIFESTS = {
    "no layers": json.dumps({"schemaVersion": 2, "layers": []}).encode(),
    "layers no list": json.dumps({"schemaVersion": 2, "layers": {}}).encode(),
    "not json": b"<html>",
    "nothing": b"",
    "deep": b"[" * 100_000,
    "a number": b"7",
    "too large": b" " * (5 * MIB),
}
BAD_LAYERS = {
    "negative": [layer(-1)],
    "too many": [layer(1, digest_of(b"%d" % n)) for n in range(1001)],
    "a fraction": [layer(1.5)],
    "a text": [layer("1")],
    "true": [layer(True)],
    "huge": [layer(1 << 63)],
    "two sizes": [layer(1), layer(2)],
    "twice": [layer(1), layer(1)],
    "a path": [layer(1, name="../x")],
    "none": [None],
}


@pytest.mark.parametrize("case", BAD_MANIFESTS)
def test_a_manifest_that_is_none_is_refused(registry: Registry, pulled: Pull, case: str) -> None:
    registry.manifests["library/m:latest"] = BAD_MANIFESTS[case]
    with pytest.raises(ApiError, match=r"^pull model manifest: "):
        pulled()


@pytest.mark.parametrize("case", BAD_LAYERS)
def test_a_manifest_with_odd_layers_is_refused(registry: Registry, pulled: Pull, case: str) -> None:
    registry.put_manifest("library/m:latest", BAD_LAYERS[case])
    with pytest.raises(ApiError, match=r"^pull model manifest: "):
        pulled()
    assert not registry.lines("/blobs/")


def test_pulls_of_one_model_at_one_time_fetch_it_once(
    registry: Registry, store: LocalStore, options: TransferOptions
) -> None:
    name, ends = named(f"{registry.host}/library/m"), []

    def one() -> None:
        ends.append(list(pull(store, name, options))[-1])

    threads = [threading.Thread(target=one) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert ends == [{"status": "success"}] * 4
    assert len(registry.lines(digest_of(BIG))) == 6
    assert bytes_of(store, name.short) == [BIG, SMALL]


def test_who_waits_goes_on_where_the_other_is_cancelled(
    registry: Registry, store: LocalStore, options: TransferOptions
) -> None:
    name = named(f"{registry.host}/library/m")
    registry.fail(digest_of(BIG), "stall", 1000, times=4)
    patient = replace(options, limits=replace(QUICK, stall_s=60))
    first = pull(store, name, patient)
    while "digest" not in next(first):
        pass
    second: list[object] = []
    thread = threading.Thread(target=lambda: second.extend(pull(store, name, options)))
    thread.start()
    first.close()
    thread.join()
    assert second[-1] == {"status": "success"}
    assert bytes_of(store, name.short) == [BIG, SMALL]


def test_a_pull_that_is_closed_leaves_no_thread(
    registry: Registry, store: LocalStore, options: TransferOptions
) -> None:
    registry.fail(digest_of(BIG), "stall", 1000, times=4)
    before = set(threading.enumerate())
    patient = replace(options, limits=replace(QUICK, stall_s=60))
    lines = pull(store, named(f"{registry.host}/library/m"), patient)
    while "digest" not in next(lines):
        pass
    lines.close()
    left = [thread.name for thread in set(threading.enumerate()) - before if thread.name in ("transfer", "lease")]
    assert not left


def test_a_store_that_cannot_be_written_says_so(
    registry: Registry, store: LocalStore, options: TransferOptions
) -> None:
    with pytest.raises(ApiError, match="read-only") as caught:
        list(pull(LocalStore(store.root, is_read_only=True), named(f"{registry.host}/library/m"), options))
    assert caught.value.status == 403
