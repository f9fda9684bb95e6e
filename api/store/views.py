"""Show a model of several blobs as a folder of links, which the runtime reads as any other folder."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from pathlib import Path

from ollampi.api.store.blobs import Blobs
from ollampi.api.store.files import TEMPORARY, is_dead_temporary, make_folder, sync_folder, temporary_name
from ollampi.api.store.manifest import ADAPTER_TYPE, JSON_TYPE, TENSOR_TYPE, Layer, Manifest

_SAFETENSORS = ".safetensors"


class Views:
    """The folders of links below `root`, each named after the files in it; `blobs` lie beside it.

    Models with the same files share one: a new template is no reason to load the weights again.
    """

    def __init__(self, root: Path, blobs: Blobs) -> None:
        self._root, self._blobs = root, blobs

    def path(self, manifest: Manifest) -> Path:
        """Return where a manifest's view is, if it is there."""
        return self._root / view_name(manifest)

    def make(self, manifest: Manifest) -> None:
        """Make the view of a manifest that names files of a folder, unless it is there; raise OSError."""
        if file_layers(manifest) and not self.path(manifest).is_dir():
            temporary = self.make_temporary(manifest)
            try:
                os.rename(temporary, self.path(manifest))
            except OSError:
                shutil.rmtree(temporary)
                if not self.path(manifest).is_dir():  # another process was faster
                    raise
            sync_folder(self._root)

    def make_temporary(self, manifest: Manifest) -> Path:
        """Return a view that is not under its final name; raise OSError."""
        make_folder(self._root)
        folder = temporary_name(self._root)
        make_folder(folder)
        try:
            for name, layer in file_layers(manifest):
                link = folder / name
                make_folder(link.parent)
                link.symlink_to(os.path.relpath(self._blobs.path(layer.digest), link.parent))
            for place, _, _ in os.walk(folder):
                sync_folder(Path(place))
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        return folder

    def keep_only(self, wanted: set[str]) -> None:
        """Remove all views but those with these names, and what dead writers left."""
        with contextlib.suppress(FileNotFoundError):
            for entry in os.listdir(self._root):
                path = self._root / entry
                if entry not in wanted and (not entry.startswith(TEMPORARY) or is_dead_temporary(path)):
                    shutil.rmtree(path, ignore_errors=True)


def view_name(manifest: Manifest) -> str:
    """Return the digest in hex of the names of a model's files and their digests."""
    listed = sorted((name, layer.digest) for name, layer in file_layers(manifest))
    return hashlib.sha256(json.dumps(listed).encode()).hexdigest()


def file_layers(manifest: Manifest) -> list[tuple[str, Layer]]:
    """Return the layers that are files of a model folder, with their paths in it.

    Ollama keeps each tensor in a safetensors file of its own, with the tensor's name in the layer.
    https://github.com/ollama/ollama/blob/main/x/imagegen/docs/blob-format.md
    """
    found: dict[str, Layer] = {}
    for layer in manifest.layers:
        if layer.media_type == TENSOR_TYPE and layer.name and not layer.name.endswith(_SAFETENSORS):
            found[layer.name.replace("/", "--") + _SAFETENSORS] = layer
        elif layer.media_type in (TENSOR_TYPE, JSON_TYPE, ADAPTER_TYPE) and layer.name:
            found[layer.name] = layer
    return list(found.items())
