"""A model goes to a registry whole, and comes back the same."""

from __future__ import annotations

import random
import threading
from dataclasses import replace

import pytest
from support.pulls import BIG, QUICK, SMALL, Pull, bytes_of, named
from support.registry import Registry, digest_of

from ollampi.api.errors import ApiError
from ollampi.api.registry import upload
from ollampi.api.registry.pull import pull
from ollampi.api.registry.push import push
from ollampi.api.registry.transfer import TransferOptions
from ollampi.api.store.digest import parse_digest
from ollampi.api.store.local import LocalStore

MIB = 1 << 20
PATCHES = "PATCH .*uploads"


@pytest.fixture
def pushed(
    registry: Registry,
    store: LocalStore,
    pulled: Pull,
    options: TransferOptions,
    monkeypatch: pytest.MonkeyPatch,
) -> Pull:
    """Return a function that pushes library/m to an empty registry and returns the lines."""
    monkeypatch.setattr(upload, "PART_BYTES", 8 * MIB)  # so that there are three
    pulled()
    for path in registry.folder.glob("sha256-*"):
        path.unlink()
    registry.manifests.clear()
    registry.seen.clear()

    def do(**more: object) -> list[dict[str, object]]:
        return list(push(store, named(f"{registry.host}/library/m"), replace(options, **more)))  # type: ignore[arg-type]

    return do


def is_there(registry: Registry, store: LocalStore) -> bool:
    """Return whether the registry has the model, byte for byte."""
    manifest = store.read(named(f"{registry.host}/library/m"))
    blobs = [registry.path(digest_of(data)).read_bytes() for data in (BIG, SMALL)]
    assert manifest is not None
    return registry.manifests["library/m:latest"] == manifest.encode() and blobs == [BIG, SMALL]


def test_a_store_that_cannot_be_written_is_pushed_from(
    registry: Registry, store: LocalStore, pushed: Pull, options: TransferOptions
) -> None:
    fixed = LocalStore(store.root, is_read_only=True)
    lines = list(push(fixed, named(f"{registry.host}/library/m"), options))
    assert lines[-1] == {"status": "success"}
    assert is_there(registry, store)


def test_the_lines_are_those_of_ollama(registry: Registry, store: LocalStore, pushed: Pull) -> None:
    lines = pushed()
    digest = digest_of(BIG)
    progress = [line for line in lines if line.get("digest") == digest]
    assert progress[0] == {"status": f"pushing {digest[7:19]}", "digest": digest, "total": len(BIG)}
    assert progress[-1] == {**progress[0], "completed": len(BIG)}
    statuses = list(dict.fromkeys(line["status"] for line in lines))
    others = [status for status in statuses if not status.startswith("pushing ") or status == "pushing manifest"]
    assert others == ["retrieving manifest", "pushing manifest", "success"]
    assert is_there(registry, store)
    ranges = [headers["Content-Range"] for line, headers in registry.seen if line.startswith("PATCH")]
    assert f"0-{8 * MIB - 1}" in ranges
    assert f"{16 * MIB}-{len(BIG) - 1}" in ranges
    assert registry.lines()[-1] == "PUT /v2/library/m/manifests/latest"


def test_what_the_registry_has_is_not_sent(registry: Registry, store: LocalStore, pushed: Pull) -> None:
    pushed()
    registry.seen.clear()
    pushed()
    assert not registry.lines("^(POST|PATCH)")


def test_a_round_trip(
    registry: Registry, store: LocalStore, pushed: Pull, options: TransferOptions, tmp_path: object
) -> None:
    pushed()
    name = named(f"{registry.host}/library/m")
    assert store.remove(name)
    list(pull(store, name, options))
    assert bytes_of(store, name.short) == [BIG, SMALL]


@pytest.mark.parametrize("seed", range(5))
def test_drops_at_random_bytes(registry: Registry, store: LocalStore, pushed: Pull, seed: int) -> None:
    draw = random.Random(seed)
    for _ in range(5):
        registry.fail(PATCHES, "drop", draw.randrange(1, 8 * MIB))
    pushed(limits=replace(QUICK, num_tries=10))
    assert is_there(registry, store)


@pytest.mark.parametrize("pattern", ["^HEAD", "^POST", "^PATCH", "^PUT .*uploads", "^PUT .*manifests"])
@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_server_that_is_busy_for_a_while(
    registry: Registry, store: LocalStore, pushed: Pull, pattern: str, status: int
) -> None:
    registry.fail(pattern, "status", status, times=4)
    pushed()
    assert is_there(registry, store)


def test_a_registry_that_forgets_the_upload(registry: Registry, store: LocalStore, pushed: Pull) -> None:
    registry.fail(PATCHES + ".*state=8388608", "status", 404)
    pushed()
    assert is_there(registry, store)


def test_a_registry_that_needs_a_token(registry: Registry, store: LocalStore, pushed: Pull) -> None:
    registry.token = "secret"
    pushed()
    assert is_there(registry, store)


def test_a_realm_elsewhere_is_not_asked(registry: Registry, other: Registry, pushed: Pull) -> None:
    registry.fail("", "realm", f"{other.url}/token", times=100)
    with pytest.raises(ApiError, match="wants a token from another host"):
        pushed(registries=(registry.url, other.url))
    assert not other.seen


@pytest.mark.parametrize("pattern", ["^HEAD", "^POST", "^PATCH", "^PUT"])
def test_a_redirect_to_a_private_host_is_not_followed(
    registry: Registry, other: Registry, pushed: Pull, pattern: str
) -> None:
    registry.fail(pattern, "redirect", f"{other.url}/x", times=100)
    with pytest.raises(ApiError):
        pushed()
    assert not other.seen


def test_an_upload_place_on_a_private_host_is_not_used(registry: Registry, other: Registry, pushed: Pull) -> None:
    def elsewhere(handler: object) -> None:
        handler._answer(202, b"", {"Location": f"{other.url}/x"})  # type: ignore[attr-defined]

    registry.fail("^POST", "answer", elsewhere, times=100)
    with pytest.raises(ApiError, match="plain HTTP"):
        pushed()
    assert not other.seen


def test_a_registry_that_is_not_listed_sees_nothing(registry: Registry, pushed: Pull) -> None:
    with pytest.raises(ApiError, match="not a public host"):
        pushed(registries=())
    assert not registry.seen


def test_a_damaged_blob_is_not_taken(registry: Registry, store: LocalStore, pushed: Pull) -> None:
    path = store.blobs.path(parse_digest(digest_of(BIG)))
    path.write_bytes(bytes(len(BIG)))
    with pytest.raises(ApiError, match=r"does not take blob .*ollampi verify"):
        pushed()
    path.write_bytes(BIG[:-1])
    with pytest.raises(ApiError, match="is missing or has another size"):
        pushed()
    assert not registry.manifests


def test_an_unknown_model(store: LocalStore, options: TransferOptions) -> None:
    with pytest.raises(ApiError, match="model 'x:latest' not found") as caught:
        list(push(store, named("x"), options))
    assert caught.value.status == 404


def test_a_push_that_is_closed_leaves_no_thread(
    registry: Registry, store: LocalStore, pushed: Pull, options: TransferOptions
) -> None:
    registry.fail(PATCHES, "answer", lambda _: registry.over.wait(60), times=1)
    before = set(threading.enumerate())
    patient = replace(options, limits=replace(QUICK, stall_s=60))
    lines = push(store, named(f"{registry.host}/library/m"), patient)
    while not registry.lines(PATCHES):
        next(lines)
    lines.close()  # type: ignore[attr-defined]
    left = [thread.name for thread in set(threading.enumerate()) - before if thread.name in ("transfer", "lease")]
    assert not left
