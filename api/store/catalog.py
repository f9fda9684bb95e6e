"""Find models by name in the store and in the configured folders; any change shows at the next request."""

from __future__ import annotations

import logging
import os
import re
import threading
from dataclasses import dataclass
from pathlib import Path

from ollampi.api.errors import ApiError, shown
from ollampi.api.model import Fingerprint, Model, fingerprint, read_model
from ollampi.api.names import GGUF, Name, parse_name, path_name
from ollampi.api.store.local import LocalStore
from ollampi.api.store.stored import StoredModels
from ollampi.mpiruntime.errors import ModelError

_FURTHER_PART = re.compile(r"-(?!00001)\d{5}-of-\d{5}\.gguf$")
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Place:
    """Where a model is: its folder or GGUF file, or the file of its manifest."""

    name: Name
    path: Path
    is_stored: bool


class Store:
    """The models in `folders` and in the store `local`, which alone is written to.

    Each of the folders is a model folder (it has a config.json), a GGUF file, or a folder of such.
    """

    def __init__(self, folders: list[Path], local: LocalStore | None = None) -> None:
        self.local = local
        self._folders = folders
        self._stored = None if local is None else StoredModels(local)
        self._cache: dict[Path, tuple[Fingerprint, Model | str]] = {}  # the text says why there is no model
        self._lock = threading.Lock()

    def models(self) -> list[Model]:
        """Return every usable model, newest first; damaged ones are left out."""
        found = []
        for place in self._places().values():
            try:
                found.append(self._model(place))
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
        place = self._place(name) if name else None
        return None if place is None else self._model(place)

    def at(self, path: str, name: str = "") -> Model | None:
        """Return the model whose weights are at `path`, None where there is none of ours or it is damaged.

        name: of several with the same weights, the one called so.
        """
        found = []
        for place in self._places().values():
            try:
                if place.is_stored or str(place.path) == path:
                    found.append(self._model(place))
            except ModelError:
                continue
        ours = [model for model in found if str(model.path) == path]
        return next((model for model in ours if model.full_name == name), ours[0] if ours else None)

    def is_fixed(self, name: Name) -> bool:
        """Return whether a name stands for a model in a folder, which the store cannot replace."""
        place = self._place(name)
        return place is not None and not place.is_stored

    def hides(self, name: Name) -> bool:
        """Return whether no model of the store is found under a name, since a path given at the start has it."""
        return name.key in self._given()

    def _place(self, name: Name) -> _Place | None:
        """Return where the model called `name` is, as `_places` does, without a look at all of the store."""
        given = self._given().get(name.key)
        if given is not None:
            return given
        if self._stored is not None and (found := self._stored.find(name)) is not None:
            return _Place(*found, True)
        return self._in_folders().get(name.key)

    def _places(self) -> dict[str, _Place]:
        """Return name key -> where the model is: given paths go before the store, which goes before folders."""
        places = self._given()
        for name, path in self._stored.paths().items() if self._stored else ():
            places.setdefault(name.key, _Place(name, path, True))
        return self._in_folders() | places

    def _in_folders(self) -> dict[str, _Place]:
        """Return name key -> the model in a folder; the first of equal names wins."""
        places: dict[str, _Place] = {}
        for folder in self._folders:
            for path in _model_folders(folder):
                if (name := path_name(path)) is not None:
                    places.setdefault(name.key, _Place(name, path, False))
        return places

    def _given(self) -> dict[str, _Place]:
        """Return those of the configured paths that are models themselves; the first of equal names wins."""
        places: dict[str, _Place] = {}
        for path in self._folders:
            if is_model(path) and (name := path_name(path)) is not None:
                places.setdefault(name.key, _Place(name, path, False))
        return places

    def _model(self, place: _Place) -> Model:
        """Return the model at a place, read again only where a file changed; raise ModelError."""
        try:
            now = self._fingerprint(place)
        except OSError as e:
            raise ModelError(f"model folder {place.path.name!r} cannot be read: {e.strerror}; check its files") from e
        with self._lock:
            known = self._cache.get(place.path)
        found = known[1] if known is not None and known[0] == now else self._read(place, now)
        if isinstance(found, str):
            raise ModelError(found)
        return found

    def _fingerprint(self, place: _Place) -> Fingerprint:
        """Return what changes with the files of a model; raise ModelError, OSError."""
        if place.is_stored and self._stored is not None:
            return self._stored.fingerprint(place.name, place.path)
        return fingerprint(place.path)

    def _read(self, place: _Place, now: Fingerprint) -> Model | str:
        """Return and remember what is at a place; log what makes it unusable, once per state of its files."""
        found: Model | str
        stored = self._stored if place.is_stored else None
        try:
            found = read_model(place.name, place.path) if stored is None else stored.read(place.name, place.path)
        except ModelError as e:
            if isinstance(e.__cause__, OSError):  # it may pass without a change of the files
                raise
            found = str(e)
            _log.warning("a model is left out: %s", found)
        except Exception as e:  # one odd folder must not take the others away
            found = f"model folder {place.path.name!r} cannot be used: {type(e).__name__}; copy it again"
            _log.exception("a model is left out: %s", found)
        with self._lock:
            self._cache[place.path] = (now, found)
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
