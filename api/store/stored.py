"""Read a model of the store: its weights as those of any GGUF file or folder, and what its other layers say."""

from __future__ import annotations

import json
import logging
import os
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

from ollampi.api.errors import ApiError
from ollampi.api.go_template import template_capabilities
from ollampi.api.model import LATEST_S, Fingerprint, Model, read_model
from ollampi.api.names import Name
from ollampi.api.store.local import LocalStore
from ollampi.api.store.manifest import (
    ADAPTER_TYPE,
    JSON_TYPE,
    LICENSE_TYPE,
    MESSAGES_TYPE,
    MODEL_TYPE,
    PARAMS_TYPE,
    PROJECTOR_TYPE,
    SYSTEM_TYPE,
    TEMPLATE_TYPE,
    TENSOR_TYPE,
    Layer,
    Manifest,
)
from ollampi.mpiruntime.errors import ModelError

MAX_TEXT_BYTES = 1 << 20
_log = logging.getLogger(__name__)


class StoredModels:
    """The models of a store; a manifest is read once for each state of its file."""

    def __init__(self, store: LocalStore) -> None:
        self._store = store
        self._manifests: dict[Path, tuple[Fingerprint, Manifest]] = {}
        self._lock = threading.Lock()

    def paths(self) -> dict[Name, Path]:
        """Return the files of the manifests by name."""
        return self._store.paths()

    def find(self, name: Name) -> tuple[Name, Path] | None:
        """Return a model's name as it is written in the store, and its manifest's file; None where there is none."""
        return self._store.find(name)

    def fingerprint(self, name: Name, path: Path) -> Fingerprint:
        """Return what changes with a model's manifest or blobs; raise ModelError, OSError."""
        _, manifest, state = self._read_manifest(name, path)
        blobs = []
        for digest in manifest.blobs:
            try:
                stat = os.stat(self._store.blobs.path(digest))
                blobs.append((digest.file_name, stat.st_mtime_ns, stat.st_size))
            except FileNotFoundError:
                blobs.append((digest.file_name, 0, -1))
        return (*state, *blobs)

    def read(self, name: Name, path: Path) -> Model:
        """Return the model; raise ModelError with its name and the blob that cannot be used."""
        changed, manifest, _ = self._read_manifest(name, path)
        model = read_stored(self._store, name, manifest)
        return replace(model, modified_at=min(max(0.0, changed), LATEST_S))

    def _read_manifest(self, name: Name, path: Path) -> tuple[float, Manifest, Fingerprint]:
        """Return when a manifest was written, the manifest, and what changes with its file; ModelError, OSError."""
        stat = path.stat()
        state = (("manifest", stat.st_mtime_ns, stat.st_size), ("inode", stat.st_ino, stat.st_ctime_ns))
        with self._lock:
            known = self._manifests.get(path)
        if known is None or known[0] != state:
            read = self._store.read(name)
            if read is None:
                raise ModelError(f"model {name.short} has just been deleted")
            known = (state, read)
            with self._lock:
                self._manifests[path] = known
        return stat.st_mtime, known[1], known[0]


def read_stored(store: LocalStore, name: Name, manifest: Manifest, view: Path | None = None) -> Model:
    """Return the model of a manifest; raise ModelError with its name and the blob that cannot be used.

    view: the folder of links to its files where that is not the store's.
    """
    reader = _Reader(store, manifest, view)
    try:
        reader.check_sizes()
        texts, weights, adapters = reader.texts(), reader.weights(), reader.adapters()
    except OSError as e:
        raise ModelError(f"model {name.short}: a blob cannot be read: {e.strerror}; check the store") from e
    except ModelError as e:
        raise ModelError(f"model {name.short}: {e}") from e.__cause__
    model = read_model(name, weights)
    origin = next((layer.origin for layer in manifest.of_type(MODEL_TYPE)), "")
    return replace(
        model,
        digest=manifest.digest.hex,
        size_bytes=sum(layer.size for layer in (manifest.config, *manifest.layers)),
        details={**model.details, "parent_model": origin},
        capabilities=_capabilities(model.capabilities, texts["template"]),
        adapters=adapters,
        is_stored=True,
        **texts,
    )


class _Reader:
    """What reads the parts of one model of the store."""

    def __init__(self, store: LocalStore, manifest: Manifest, view: Path | None) -> None:
        self._store, self._manifest, self._given_view = store, manifest, view

    def check_sizes(self) -> None:
        """Raise ModelError where a blob is missing or has not the size that the manifest gives."""
        for digest, size in self._manifest.blobs.items():
            there = self._store.blobs.size(digest)
            if there is None:
                raise ModelError(f"blob {digest} of {size} bytes is missing; pull or create the model again")
            if there != size:
                raise ModelError(f"blob {digest} has {there} bytes, not {size}; pull or create the model again")

    def weights(self) -> Path:
        """Return the GGUF file, or the folder, that holds the weights; raise ModelError where there is none."""
        for layer in self._manifest.of_type(PROJECTOR_TYPE):
            _log.info("%s is ignored: images are not read", layer.digest)
        files = list(self._manifest.of_type(MODEL_TYPE))
        if len(files) > 1:
            raise ModelError(f"its weights are in {len(files)} GGUF files; merge them with llama.cpp's gguf-split")
        if files:
            return self._store.blobs.path(files[0].digest)
        if not any(True for kind in (TENSOR_TYPE, JSON_TYPE) for _ in self._manifest.of_type(kind)):
            raise ModelError("its manifest names no weights; pull a model that is not served elsewhere")
        return self._view()

    def _view(self) -> Path:
        """Return the folder of links to the model's files, made now where another program wrote the self._manifest."""
        if self._given_view is not None:
            return self._given_view
        path = self._store.views.path(self._manifest)
        if not path.is_dir():
            try:
                self._store.views.make(self._manifest)
            except OSError as e:
                raise ModelError(
                    "the store has no folder of links to its files and cannot be written; run `ollampi list` once as"
                    " its owner"
                ) from e
        return path

    def adapters(self) -> tuple[str, ...]:
        """Return the folders of the model's LoRA adapters, and what of them is no folder."""
        layers = list(self._manifest.of_type(ADAPTER_TYPE))
        if not layers:
            return ()
        view = self._view() if any(layer.name for layer in layers) else Path()
        folders = [view / layer.name.rpartition("/")[0] for layer in layers if layer.name]
        files = [self._store.blobs.path(layer.digest) for layer in layers if not layer.name]
        return tuple(dict.fromkeys(str(path) for path in (*folders, *files)))

    def texts(self) -> dict[str, Any]:
        """Return what the small layers say, as fields of a Model; of several of a kind the last one counts."""
        parameters = self._last(PARAMS_TYPE)
        messages = self._last(MESSAGES_TYPE)
        return {
            "template": self._last(TEMPLATE_TYPE),
            "system": self._last(SYSTEM_TYPE),
            "parameters": _json(PARAMS_TYPE, parameters, dict) if parameters else {},
            "messages": _messages(messages) if messages else [],
            "licenses": [self._text(layer) for layer in self._manifest.of_type(LICENSE_TYPE)],
        }

    def _last(self, media_type: str) -> str:
        layers = list(self._manifest.of_type(media_type))
        return self._text(layers[-1]) if layers else ""

    def _text(self, layer: Layer) -> str:
        """Return the text of a layer; raise ModelError, OSError."""
        if layer.size > MAX_TEXT_BYTES:
            raise ModelError(f"{layer.digest} of type {layer.media_type} has more than {MAX_TEXT_BYTES} bytes")
        try:
            return self._store.blobs.path(layer.digest).read_bytes().decode()
        except UnicodeDecodeError as e:
            raise ModelError(f"{layer.digest} of type {layer.media_type} is not valid UTF-8; create it again") from e


def _capabilities(found: list[str], template: str) -> list[str]:
    """Return what the model can do: with a Go template, what that knows, in the place of the templates of its texts."""
    if "completion" not in found or not template:
        return found
    kept = [ability for ability in found if ability in ("completion", "insert")]
    return [*kept, *(ability for ability in _template_capabilities(template) if ability not in kept)]


def _template_capabilities(template: str) -> list[str]:
    """Return what a Go template knows, nothing where it is broken: then every request that it must render says so."""
    try:
        return template_capabilities(template)
    except ApiError:
        return []


def _messages(text: str) -> list[dict[str, str]]:
    """Return the messages of a layer; raise ModelError where they are none."""
    messages = _json(MESSAGES_TYPE, text, list)
    for message in messages:
        if not isinstance(message, dict) or not all(isinstance(message.get(key), str) for key in ("role", "content")):
            raise ModelError(f"its layer of type {MESSAGES_TYPE} must be a list of objects with role and content")
    return [{"role": message["role"], "content": message["content"]} for message in messages]


def _json(media_type: str, text: str, kind: type[Any]) -> Any:
    """Return the JSON object or list of a layer; raise ModelError where it is none."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, kind):
        expected = "object" if kind is dict else "list"
        raise ModelError(f"its layer of type {media_type} is no JSON {expected}; create the model again")
    return value
