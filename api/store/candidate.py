"""Read a model whose manifest is not written yet, so that none is written that could not be served."""

from __future__ import annotations

import shutil

from ollampi.api.known_tokenizers import Tokenizers
from ollampi.api.model import Model
from ollampi.api.names import Name
from ollampi.api.store.files import writing
from ollampi.api.store.local import LocalStore
from ollampi.api.store.manifest import Manifest
from ollampi.api.store.stored import read_stored
from ollampi.api.store.views import file_layers
from ollampi.mpiruntime.adapter_config import read_adapter_config
from ollampi.mpiruntime.checkpoint_files import checkpoint_entries
from ollampi.mpiruntime.errors import ModelError
from ollampi.mpiruntime.model_config import read_config
from ollampi.mpiruntime.safetensors_header import read_header


def check_candidate(store: LocalStore, name: Name, manifest: Manifest) -> Model:
    """Return the model that a manifest stands for; raise ModelError where it could not be served.

    Everything is read but the bytes of the tensors, of which the headers say where they lie.
    """
    view = None
    if file_layers(manifest):
        with writing():
            view = store.views.make_temporary(manifest)
    try:
        model = read_stored(store, name, manifest, view)
        try:
            read_config(model.path)
            if model.path.is_dir():
                checkpoint_entries(model.path)
            Tokenizers().get(model)
            for adapter in model.adapters:
                read_adapter_config(model.path.__class__(adapter))
                read_header(model.path.__class__(adapter) / "adapter_model.safetensors")
        except ModelError as e:
            raise ModelError(str(e).replace(f"{view or store.blobs.root}/", "")) from e
        return model
    finally:
        if view is not None:
            shutil.rmtree(view, ignore_errors=True)
