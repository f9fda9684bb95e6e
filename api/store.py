"""Find models by name in the configured folders; a folder that is added or changed shows at the next request."""

from __future__ import annotations

import logging
import os
import re
import threading
from pathlib import Path

from ollampi.api.errors import ApiError, shown
from ollampi.api.model import Fingerprint, Model, fingerprint, read_model
from ollampi.api.names import GGUF, parse_name, path_name
from ollampi.mpiruntime.errors import ModelError

_FURTHER_PART = re.compile(r"-(?!00001)\d{5}-of-\d{5}\.gguf$")
_log = logging.getLogger(__name__)


class Store:
    """The models in `folders`: each is a model folder (it has a config.json), a GGUF file, or a folder of such."""

    def __init__(self, folders: list[Path]) -> None:
        self._folders = folders
        self._cache: dict[Path, tuple[Fingerprint, Model | str]] = {}  # the text says why the folder is no model
        self._lock = threading.Lock()

    def models(self) -> list[Model]:
        """Return every usable model, newest first; damaged ones are left out."""
        found = []
        for path in self._paths().values():
            try:
                found.append(self._model(path))
            except ModelError:
                continue
        return sorted(found, key=lambda model: (-model.modified_at, model.full_name))

    def find(self, text: str) -> Model:
        """Return the model called `text`; raise ApiError (404) where there is none, ModelError where it is damaged."""
        model = self.get(text)
        if model is None:
            raise ApiError(404, f"model '{shown(text)}' not found")
        return model

    def get(self, text: str) -> Model | None:
        """Return the model called `text`, or None where there is none; raise ModelError where it is damaged."""
        name = parse_name(text)
        path = self._paths().get(name.key) if name else None
        return None if path is None else self._model(path)

    def at(self, path: str) -> Model | None:
        """Return the model in folder `path`, or None where there is none of ours or it is damaged."""
        try:
            return next((self._model(ours) for ours in self._paths().values() if str(ours) == path), None)
        except ModelError:
            return None

    def _paths(self) -> dict[str, Path]:
        """Return name key -> folder; the first of equal names wins."""
        paths: dict[str, Path] = {}
        for folder in self._folders:
            for path in _model_folders(folder):
                name = path_name(path)
                if name is not None:
                    paths.setdefault(name.key, path)
        return paths

    def _model(self, path: Path) -> Model:
        """Return the model in a folder, read again only where a file changed; raise ModelError."""
        try:
            now = fingerprint(path)
        except OSError as e:
            raise ModelError(f"model folder {path.name!r} cannot be read: {e.strerror}; check its files") from e
        with self._lock:
            known = self._cache.get(path)
        found = known[1] if known is not None and known[0] == now else self._read(path, now)
        if isinstance(found, str):
            raise ModelError(found)
        return found

    def _read(self, path: Path, now: Fingerprint) -> Model | str:
        """Return and remember what is in a folder; log what makes it unusable, once per state of its files."""
        found: Model | str
        try:
            name = path_name(path)
            if name is None:
                raise ModelError(f"{path.name!r} has a name that no model can have; rename it")
            found = read_model(name, path)
        except ModelError as e:
            if isinstance(e.__cause__, OSError):  # it may pass without a change of the files
                raise
            found = str(e)
            _log.warning("a model is left out: %s", found)
        except Exception as e:  # one odd folder must not take the others away
            found = f"model folder {path.name!r} cannot be used: {type(e).__name__}; copy it again"
            _log.exception("a model is left out: %s", found)
        with self._lock:
            self._cache[path] = (now, found)
        return found


def is_model(path: Path) -> bool:
    """Return whether a path looks like a model's: a folder with a config.json, or a GGUF file."""
    # unlike Path.is_file these never raise
    return os.path.isfile(path / "config.json") or (path.name.endswith(GGUF) and os.path.isfile(path))


def _model_folders(folder: Path) -> list[Path]:
    """Return the model folders and GGUF files that a configured path stands for, in name order."""
    if is_model(folder):
        return [folder]
    try:
        return [child for child in sorted(folder.iterdir()) if is_model(child) and not _FURTHER_PART.search(child.name)]
    except OSError:
        return []
