"""Offer the routes that change the model store, and /v2, from which other servers of ours pull."""

from __future__ import annotations

import contextlib
import math
import threading
from collections import deque
from collections.abc import Generator, Iterator
from typing import Any

from flask import Response, request

from ollampi.api.access import Permission
from ollampi.api.disconnect import DisconnectWatcher
from ollampi.api.errors import ApiError, bad_request, shown
from ollampi.api.names import Name, parse_name
from ollampi.api.registry.pull import pull
from ollampi.api.registry.push import push
from ollampi.api.registry.serving import serve_blob, serve_manifest
from ollampi.api.registry.transfer import TransferOptions
from ollampi.api.routes import NDJSON as NDJSON_TYPE
from ollampi.api.routes import Route
from ollampi.api.settings import Settings
from ollampi.api.store.catalog import Store
from ollampi.api.store.creation import Creation, create
from ollampi.api.store.local import LocalStore
from ollampi.api.store.manifest import MANIFEST_TYPE
from ollampi.api.store.operations import copy, delete, find_blob, put_blob
from ollampi.api.store.quantise_process import convert, requantise
from ollampi.api.store.quantising import Quantiser
from ollampi.api.stream import NDJSON, encode, growing_answer, json_answer, line_of
from ollampi.api.wires.manage_bodies import CopyBody, CreateBody, PullBody, TransferBody
from ollampi.api.wires.ollama_answers import Progress
from ollampi.api.wires.ollama_bodies import Named

Steps = Iterator[dict[str, Any]]
_PIECE_BYTES = 1 << 20
_QUANTISER = Quantiser(convert, requantise)
_FAILS = {404: "", 500: "the store, the registry or the base model cannot be used", 503: "another one is writing"}
_SENT = {201: "it is new", 500: "the store cannot be written"}
_BYTES: dict[str, Any] = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}


class ManageRoutes:
    """The routes; `store` is what they change, `catalog` what else there is to begin from."""

    def __init__(self, store: LocalStore, catalog: Store, settings: Settings, watcher: DisconnectWatcher) -> None:
        self._store = store
        self._watcher = watcher
        self._catalog = catalog
        self._settings = settings

    def create(self, body: CreateBody) -> Response:
        """Answer POST /api/create; raise ApiError, ModelError."""
        if body.draft_files:
            raise bad_request("draft models are no part of a model here; start the server with draft=NAME instead")
        wanted = Creation(
            name=body.called,
            from_=body.from_,
            files=body.files,
            adapters=body.adapters,
            template=body.template,
            system=body.system,
            parameters=body.parameters,
            messages=body.messages,
            licenses=_texts(body.license),
            quantize=body.quantize or body.quantization,
        )
        return self._progress(create(self._store, self._catalog, wanted, _QUANTISER), body.stream)

    def copy(self, body: CopyBody) -> Response:
        """Answer POST /api/copy; raise ApiError."""
        copy(self._store, self._catalog, body.source, body.destination)
        return Response(status=200)

    def delete(self, body: Named) -> Response:
        """Answer DELETE /api/delete; raise ApiError."""
        delete(self._store, self._catalog, body.called)
        return Response(status=200)

    def has_blob(self, digest: str) -> Response:
        """Answer HEAD /api/blobs/DIGEST; raise ApiError."""
        find_blob(self._store, digest)
        return Response(status=200)

    def put_blob(self, digest: str) -> Response:
        """Answer POST /api/blobs/DIGEST, whose body is the blob, of any size; raise ApiError."""
        pieces = _pieces()
        if put_blob(self._store, digest, pieces):
            return Response(status=201)
        deque(pieces, maxlen=0)  # many a client does not look at an answer before it has sent all
        return Response(status=200)

    def pull(self, body: PullBody) -> Response:
        """Answer POST /api/pull; raise ApiError."""
        options = self._transfer(body.insecure, body.from_ or None)
        return self._progress(pull(self._store, _name(body), options), body.stream)

    def push(self, body: TransferBody) -> Response:
        """Answer POST /api/push; raise ApiError."""
        return self._progress(push(self._store, _name(body), self._transfer(body.insecure, None)), body.stream)

    def manifest(self, repository: str, tag: str) -> Response:
        """Answer GET /v2/REPOSITORY/manifests/TAG as a registry does."""
        return serve_manifest(self._store, repository, tag, request.args.get("ns"))

    def blob(self, repository: str, digest: str) -> Response:
        """Answer GET /v2/REPOSITORY/blobs/DIGEST as a registry does."""
        return serve_blob(self._store, digest, request.headers.get("Range"))

    def _progress(self, steps: Steps, stream: bool) -> Response:
        """Return the steps as an answer that grows, or the last of them; raise ApiError, ModelError where none is done.

        A client that leaves ends them, also one that waits for the last: it is seen at the next step.
        """
        if stream:
            return growing_answer((line_of(step) for step in steps), NDJSON, lambda: _close(steps))
        gone = threading.Event()
        unwatch = self._watcher.watch(request.environ.get("gunicorn.socket"), gone.set)
        last: dict[str, Any] = {}
        try:
            for step in steps:
                last = step
                if gone.is_set():
                    raise ApiError(499, "request canceled")
        finally:
            unwatch()
            _close(steps)
        return Response(encode(last), content_type="application/json")

    def _transfer(self, insecure: bool, source: str | None) -> TransferOptions:
        return TransferOptions(
            registries=tuple(self._settings.registries),
            insecure=insecure,
            source=source,
            num_streams=self._settings.num_transfer_streams,
        )


def manage_routes(store: LocalStore, catalog: Store, settings: Settings, watcher: DisconnectWatcher) -> list[Route]:
    """Return the routes."""
    views = ManageRoutes(store, catalog, settings, watcher)
    read, manage = Permission.READ, Permission.MANAGE
    blob = "/api/blobs/<path:digest>"
    return [
        Route("POST", "/api/create", manage, "make a model", views.create, CreateBody, Progress, NDJSON_TYPE, _FAILS),
        Route("POST", "/api/copy", manage, "give a model another name", views.copy, CopyBody, None, reasons=_FAILS),
        Route("DELETE", "/api/delete", manage, "remove a model", views.delete, Named, None, reasons=_FAILS),
        Route("HEAD", blob, manage, "whether a blob is there", views.has_blob, answer=None),
        Route("POST", blob, manage, "send a blob", views.put_blob, answer=None, reasons=_SENT, content=_BYTES),
        Route("POST", "/api/pull", manage, "download a model", views.pull, PullBody, Progress, NDJSON_TYPE, _FAILS),
        Route("POST", "/api/push", manage, "upload a model", views.push, TransferBody, Progress, NDJSON_TYPE, _FAILS),
        Route("GET", "/v2/", read, "that there is a registry", lambda: json_answer({})),
        Route(
            "GET",
            "/v2/<path:repository>/manifests/<tag>",
            read,
            "a manifest, for other servers",
            views.manifest,
            answer=MANIFEST_TYPE,
        ),
        Route(
            "GET",
            "/v2/<path:repository>/blobs/<digest>",
            read,
            "a blob, for other servers",
            views.blob,
            answer="application/octet-stream",
            reasons={206: "the bytes that Range asks for", 416: "it has no such bytes"},
        ),
    ]


def _name(body: Named) -> Name:
    """Return the model that a pull or push is about; raise ApiError (400)."""
    if not body.called:
        raise bad_request("model is required")
    name = parse_name(body.called)
    if name is None:
        raise bad_request(f"invalid model name {shown(body.called, 100)!r}: write [host/][namespace/]model[:tag]")
    return name


def _texts(value: object) -> list[str]:
    """Return the texts of a license, which is one or a list; raise ApiError (400)."""
    texts = [] if value is None else value if isinstance(value, list) else [value]
    found = [text for text in texts if isinstance(text, str)]
    if len(found) < len(texts):
        raise bad_request('json: field "license" must be of type string or array of strings')
    return [text for text in found if text]


def _pieces() -> Iterator[bytes]:
    """Yield the body of the request as it comes, however long it is and takes; raise ApiError where it breaks off."""
    request.max_content_length = None
    client = request.environ.get("gunicorn.socket")
    if client is not None:
        client.ends = math.inf  # as long as bytes come
    read = 0
    while True:
        try:
            piece = request.stream.read(_PIECE_BYTES)
        except Exception as e:  # each server has its own for broken chunks and for clients that leave or stall
            raise bad_request("the request body is broken or ends too early") from e
        if not piece:
            break
        read += len(piece)
        yield piece
    if read < (request.content_length or 0):
        raise bad_request("the request body is broken or ends too early")


def _close(steps: Steps) -> None:
    """End the work of steps that nobody reads any more."""
    if isinstance(steps, Generator):
        with contextlib.suppress(ValueError):  # another thread is at it, and ends with it
            steps.close()
