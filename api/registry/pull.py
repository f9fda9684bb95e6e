"""Bring a model into the store, from a registry, from Hugging Face, or from another server of ours."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Generator, Iterator
from dataclasses import dataclass

from ollampi.api.errors import ApiError
from ollampi.api.names import Name
from ollampi.api.registry.download import download, partial_size
from ollampi.api.registry.hosts import Hosts, origin_of
from ollampi.api.registry.hub import HUB_HOSTS, hub_model
from ollampi.api.registry.hub_listing import PUBLIC_ENDPOINT, hub_endpoint
from ollampi.api.registry.progress import Line, Meter, blob_line, watched
from ollampi.api.registry.remote import Remote, RemoteFile
from ollampi.api.registry.transfer import Cancel, TransferOptions, retried
from ollampi.api.registry.web import RefusedError, Web
from ollampi.api.store.digest import Digest
from ollampi.api.store.local import LocalStore
from ollampi.api.store.manifest import Manifest
from ollampi.mpiruntime.errors import ModelError

MAX_LAYERS = 1000
FAILED = "pull model manifest: "


@dataclass(frozen=True)
class Found:
    """A model that can be pulled: its manifest, and where each of its blobs is, in the order of pulling."""

    manifest: Manifest
    files: dict[Digest, RemoteFile]


@dataclass(frozen=True)
class Source:
    """What a search for a model uses."""

    store: LocalStore
    web: Web
    endpoint: str
    cancel: Cancel


def pull(store: LocalStore, name: Name, options: TransferOptions) -> Iterator[Line]:
    """Yield Ollama's progress until the model is in the store.

    Raise ApiError; what came of the blobs is kept, and the next pull goes on there. A generator that is closed ends its
    threads.
    """
    cancel = Cancel()
    endpoint = options.hub_endpoint or hub_endpoint()
    own = () if endpoint == PUBLIC_ENDPOINT else (endpoint,)  # the operator's choice, like those that are listed
    web = Web(Hosts((*options.registries, *own)), cancel, options.limits, options.num_streams + 1)
    with contextlib.closing(web):
        found = yield from watched(
            lambda: _find(Source(store, web, endpoint, cancel), name, options),
            lambda: {"status": "pulling manifest"},
            cancel,
        )
        with store.keeping(found.manifest.blobs):
            _check_space(store, found)
            for digest, file in found.files.items():
                yield from _pull_blob(store, digest, file, cancel, options)
            yield {"status": "verifying sha256 digest"}
            replaced = store.path(name) is not None
            yield {"status": "writing manifest"}
            store.write(name, found.manifest)
        if replaced:
            yield {"status": "removing unused layers"}
        yield {"status": "success"}


def _find(via: Source, name: Name, options: TransferOptions) -> Found:
    """Return the model that the name stands for; raise ApiError."""
    try:
        if options.source is None and name.host.lower() in HUB_HOSTS:
            found = Found(*hub_model(via.web, via.store.blobs, name, via.endpoint, via.cancel, options.limits))
        else:
            remote = _remote(via, name, options)
            manifest = Manifest.parse(retried(lambda: remote.manifest(name.tag), via.cancel, options.limits))
            found = Found(manifest, {digest: remote.blob(digest, size) for digest, size in manifest.blobs.items()})
        if len(found.manifest.layers) > MAX_LAYERS:
            raise ModelError(f"the manifest has {len(found.manifest.layers)} layers, more than {MAX_LAYERS}")
        return found
    except RefusedError as e:
        raise ApiError(500, FAILED + ("file does not exist" if e.code == 404 else str(e))) from e
    except (ApiError, ModelError) as e:
        raise ApiError(e.status if isinstance(e, ApiError) else 500, f"{FAILED}{e}") from e


def _remote(via: Source, name: Name, options: TransferOptions) -> Remote:
    """Return the repository of a model: of its registry, or of another server that has it under the same name."""
    repository = f"{name.namespace}/{name.model}"
    if options.source is None:
        return Remote(via.web, via.web.hosts.registry(name.host, options.insecure), repository)
    return Remote(via.web, origin_of(options.source), repository, name.host)


def _pull_blob(
    store: LocalStore, digest: Digest, file: RemoteFile, cancel: Cancel, options: TransferOptions
) -> Generator[Line, None, None]:
    meter = Meter()

    def work() -> None:
        download(store, file, digest, meter, cancel, options)

    yield from watched(work, lambda: blob_line("pulling", digest, file.size, meter.completed), cancel)
    yield blob_line("pulling", digest, file.size, file.size)


def _check_space(store: LocalStore, found: Found) -> None:
    """Raise ApiError (500) where the blobs that are missing cannot fit: better now than when the disk is full."""
    needed = sum(max(0, file.size - _there(store, digest)) for digest, file in found.files.items())
    with store.blobs.writable():
        disk = os.statvfs(store.blobs.root)
    free = disk.f_bavail * disk.f_frsize
    if needed > free:
        raise ApiError(
            500,
            f"no space left on device in the model store: {needed} bytes are missing and {free} are free;"
            " delete models or free space, and pull again",
        )


def _there(store: LocalStore, digest: Digest) -> int:
    """Return how many bytes of a blob are there."""
    return store.blobs.size(digest) or partial_size(store, digest)
