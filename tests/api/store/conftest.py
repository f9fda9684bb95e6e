"""Give the tests of the store an empty one, a GGUF file, and a way to put models into it by hand as Ollama does."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.checkpoints import write_checkpoint
from support.gguf_files import write_gguf
from support.vocabularies import gguf_of_tokenizer
from tokenizers import Tokenizer

from ollampi.api.store.catalog import Store
from ollampi.api.store.creation import Creation, create
from ollampi.api.store.local import LocalStore
from ollampi.api.store.quantising import Quantiser, Tell
from ollampi.mpiruntime.gguf_header import is_gguf

TEMPLATE = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>{% endfor %}"
PutModel = Callable[..., str]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "home" / ".ollama" / "models"


@pytest.fixture
def local(root: Path) -> LocalStore:
    return LocalStore(root)


@pytest.fixture(scope="session")
def gguf_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("m") / "m", vocab_size=400)


@pytest.fixture
def gguf_file(gguf_checkpoint: Path, tokenizer: Tokenizer, tmp_path: Path) -> Path:
    """Return a GGUF file with a tokenizer, one that the API's tests can serve."""
    path = tmp_path / "weights.gguf"
    write_gguf(path, gguf_checkpoint, "Q8_0", {**gguf_of_tokenizer(tokenizer, TEMPLATE), "general.file_type": 7})
    return path


@pytest.fixture
def put_model(root: Path) -> PutModel:
    """Return what writes a model as Ollama would, without our code; it returns the manifest's digest in hex."""

    def put(path: str, *layers: Any, config: bytes = b'{"model_format":"gguf"}') -> str:
        blobs = root / "blobs"
        blobs.mkdir(parents=True, exist_ok=True)

        def written(media_type: str, content: bytes, name: str = "") -> dict[str, Any]:
            digest = hashlib.sha256(content).hexdigest()
            (blobs / f"sha256-{digest}").write_bytes(content)
            named = {"name": name} if name else {}
            return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(content), **named}

        manifest = {
            "schemaVersion": 2,
            "mediaType": "application/vnd.docker.distribution.manifest.v2+json",
            "config": written("application/vnd.docker.container.image.v1+json", config),
            "layers": [written(f"application/vnd.ollama.image.{layer[0]}", *layer[1:]) for layer in layers],
        }
        raw = json.dumps(manifest, separators=(",", ":")).encode() + b"\n"
        file = root / "manifests" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(raw)
        return hashlib.sha256(raw).hexdigest()

    return put


@pytest.fixture
def catalog(local: LocalStore, models_folder: Path) -> Store:
    return Store([models_folder], local)


@pytest.fixture
def make(local: LocalStore, catalog: Store) -> Any:
    """Return what makes a model and returns the statuses that it told."""

    def made(name: str, quantiser: Quantiser | None = None, **wanted: Any) -> list[str]:
        return [step["status"] for step in create(local, catalog, Creation(name, **wanted), quantiser)]

    return made


@pytest.fixture
def quantiser(gguf_checkpoint: Path, tokenizer: Tokenizer) -> Quantiser:
    """Return one that always writes the same file."""

    def write(target: Path, kind: str, tell: Tell) -> None:
        write_gguf(target, gguf_checkpoint, kind, gguf_of_tokenizer(tokenizer, "x"))
        tell(1, 2)
        tell(2, 2)

    def convert(source: Path, target: Path, tell: Tell) -> None:
        assert (source / "config.json").is_file()
        write(target, "F32", tell)

    def requantise(source: Path, target: Path, level: str, tell: Tell) -> None:
        assert (level, is_gguf(source)) == ("q4_0", True)
        write(target, "Q4_0", tell)

    return Quantiser(convert, requantise)
