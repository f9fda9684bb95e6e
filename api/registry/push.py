"""Bring a model of the store to a registry."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator

from ollampi.api.errors import ApiError
from ollampi.api.names import Name
from ollampi.api.registry.hosts import Hosts
from ollampi.api.registry.progress import Line, Meter, blob_line, watched
from ollampi.api.registry.remote import Remote
from ollampi.api.registry.transfer import Cancel, TransferOptions, retried
from ollampi.api.registry.upload import upload
from ollampi.api.registry.web import Web
from ollampi.api.store.local import LocalStore


def push(store: LocalStore, name: Name, options: TransferOptions) -> Iterator[Line]:
    """Yield Ollama's progress until the registry that the name gives has the model; the manifest is sent last.

    Raise ApiError, 404 where the store has no such model. A generator that is closed ends its threads.
    """
    manifest = store.read(name)
    if manifest is None:
        raise ApiError(404, f"model '{name.short}' not found")
    yield {"status": "retrieving manifest"}
    cancel = Cancel()
    web = Web(Hosts(options.registries), cancel, options.limits, options.num_streams)
    with contextlib.closing(web), store.reading(manifest.blobs):
        remote = Remote(web, web.hosts.registry(name.host, options.insecure), f"{name.namespace}/{name.model}")
        for digest, size in manifest.blobs.items():
            if store.blobs.size(digest) != size:
                raise ApiError(500, f"blob {digest} is missing or has another size; pull or create the model again")
            meter = Meter()
            path = store.blobs.path(digest)
            work = functools.partial(upload, remote, path, digest, size, meter, cancel, options.limits)
            line = functools.partial(_line, digest, size, meter)
            yield from watched(work, line, cancel)
            yield blob_line("pushing", digest, size, size)

        def send() -> None:
            retried(lambda: remote.put_manifest(name.tag, manifest.encode()), cancel, options.limits)

        yield from watched(send, lambda: {"status": "pushing manifest"}, cancel)
    yield {"status": "success"}


def _line(digest: str, size: int, meter: Meter) -> Line:
    return blob_line("pushing", digest, size, meter.completed)
