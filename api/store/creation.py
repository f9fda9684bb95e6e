"""Make a model of the store from another model or from uploaded files, step by step."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ollampi.api.errors import ApiError, bad_request, public, shown
from ollampi.api.go_template import GoTemplate
from ollampi.api.model import Model
from ollampi.api.names import Name, parse_name
from ollampi.api.options import parse_options
from ollampi.api.show import shown_template
from ollampi.api.store.blobs import chunks_of
from ollampi.api.store.candidate import check_candidate
from ollampi.api.store.catalog import Store
from ollampi.api.store.digest import Digest, parse_digest
from ollampi.api.store.files import writing
from ollampi.api.store.local import LocalStore
from ollampi.api.store.manifest import (
    ADAPTER_TYPE,
    CONFIG_TYPE,
    JSON_TYPE,
    MODEL_TYPE,
    TENSOR_TYPE,
    Layer,
    Manifest,
    is_relative,
)
from ollampi.api.store.quantising import Quantiser, quantised
from ollampi.api.store.texts import Texts, config_of, with_texts
from ollampi.mpiruntime.errors import ModelError
from ollampi.mpiruntime.gguf_header import is_gguf

MAX_FILES = 1024
_ADAPTERS = "adapters"  # the folder of a view in which LoRA adapters are
_UNSAFE = (".bin", ".pt", ".pth", ".pkl", ".ckpt", ".h5", ".msgpack", ".npz", ".onnx")
Progress = Iterator[dict[str, Any]]


@dataclass(frozen=True)
class Creation:
    """What a client wants: a name, and a base: `from_`, a model's name, or files, {relative path: digest of a blob}.

    adapters: the files of one LoRA adapter in PEFT's format, likewise. What is empty is taken from the base.
    """

    name: str
    from_: str = ""
    files: dict[str, str] | None = None
    adapters: dict[str, str] | None = None
    template: str = ""
    system: str = ""
    parameters: dict[str, Any] = field(default_factory=dict)
    messages: list[dict[str, Any]] = field(default_factory=list)
    licenses: list[str] = field(default_factory=list)
    quantize: str = ""


def create(store: LocalStore, catalog: Store, wanted: Creation, quantiser: Quantiser | None = None) -> Progress:
    """Return the steps of making a model, as the lines of Ollama's answer; the last one is "success".

    Raise ApiError at once for a request that can be no model, ModelError for a damaged base. The steps raise them too,
    400 for files that are no model. Closing the iterator stops the work; only its last step changes the store's models.
    """
    name = _checked_name(wanted.name)
    check_visible(catalog, name)
    adapters = _checked_files(wanted.adapters or {})
    if wanted.from_:
        base = catalog.get(_checked_name(wanted.from_).full)
        if base is None:
            raise ApiError(404, f"model '{shown(wanted.from_)}' not found")
        if wanted.template == shown_template(base):  # which may be Jinja: clients send back what they were shown
            wanted = replace(wanted, template="")
        _check_texts(wanted)
        return _Maker(store, name, wanted, adapters, quantiser).from_model(base)
    if not wanted.files:
        raise bad_request("neither 'from' or 'files' was specified")
    _check_texts(wanted)
    return _Maker(store, name, wanted, adapters, quantiser).from_files(_checked_files(wanted.files))


def _check_texts(wanted: Creation) -> None:
    """Raise ApiError (400) for a template or options with which no request could be answered."""
    try:
        GoTemplate(wanted.template)
    except ApiError as e:
        raise bad_request(f"template error: {str(e).removeprefix('template: ')}") from e
    try:
        parse_options(wanted.parameters)
    except ApiError as e:
        raise bad_request(f"parameters: {e}") from e


def check_visible(catalog: Store, name: Name) -> None:
    """Raise ApiError (403) for a name under which a new model could not be found."""
    if catalog.hides(name):
        raise ApiError(403, f"model '{name.short}' was given to the server by its path; choose another name")


class _Maker:
    """What makes one model."""

    def __init__(
        self, store: LocalStore, name: Name, wanted: Creation, adapters: dict[str, Digest], quantiser: Quantiser | None
    ) -> None:
        self._store, self._name, self._wanted = store, name, wanted
        self._adapters, self._quantiser = adapters, quantiser
        self._known: set[str] = set()  # the blobs that were there before
        self._told: set[Digest] = set()
        self._made: set[Digest] = set()  # weights that are quantised already

    def from_model(self, base: Model) -> Progress:
        """Yield the steps from a model of the store, whose blobs are shared, or of a folder, which is copied."""
        yield {"status": "reading model metadata"}
        with contextlib.ExitStack() as stack:
            with self._store.lock():  # so that nobody deletes the base before its blobs are kept
                manifest = self._store.read(base.name) if base.is_stored else None
                if base.is_stored and manifest is None:
                    raise ApiError(404, f"model '{shown(self._wanted.from_)}' not found")
                stack.enter_context(self._keeping([*manifest.blobs] if manifest else []))
            if manifest is not None:
                yield from self._finish(manifest.layers, base.full_name, manifest.config)
            elif self._wanted.quantize:
                layer = yield from self._quantised(base.path)
                yield from self._finish((layer,), base.full_name, None)
            else:
                yield from self._from_disk(base)

    def from_files(self, files: dict[str, Digest]) -> Progress:
        """Yield the steps from blobs that were uploaded."""
        for path, digest in files.items():
            if not self._store.blobs.has(digest):
                raise bad_request(f"blob not found for {shown(path)} (digest {digest})")
        with self._keeping(files.values()):
            layers = _layers_of(self._store, files)
            if layers[0].media_type == MODEL_TYPE:
                yield {"status": "parsing GGUF"}
            yield from self._finish(layers, "", None)

    def _from_disk(self, base: Model) -> Progress:
        """Yield the steps of copying a model that lies in a folder."""
        files = _files_of(base)
        layers = []
        for name, path in files.items():
            with _readable(base):
                digest = self._store.blobs.put(chunks_of(path))
                layers.append(Layer(_type_of(name), digest, os.stat(self._store.blobs.path(digest)).st_size, name))
            yield from self._status(digest)
        if not base.path.is_dir():
            layers = [replace(layers[0], media_type=MODEL_TYPE, name="")]
        yield from self._finish(tuple(layers), base.full_name, None)

    def _finish(self, layers: tuple[Layer, ...], origin: str, config: Layer | None) -> Progress:
        """Yield the steps after the base's layers: quantise, add adapters and texts, check, write the manifest."""
        if self._wanted.quantize and layers[0].digest not in self._made:
            layers = yield from self._in_fewer_bits(layers)
        if origin:
            layers = tuple(replace(each, origin=origin) if each.media_type == MODEL_TYPE else each for each in layers)
        layers += self._adapter_layers(layers)
        wanted = self._wanted
        texts = Texts(wanted.template, wanted.system, wanted.parameters, wanted.messages, wanted.licenses)
        complete = with_texts(self._store, layers, texts)
        try:
            model = check_candidate(self._store, self._name, Manifest(config or complete[0], complete))
        except ModelError as e:
            raise bad_request(public(str(e))) from e
        raw = config_of(self._store, model, complete, config)
        manifest = Manifest(Layer(CONFIG_TYPE, self._store.blobs.put([raw]), len(raw)), complete)
        for layer in complete:
            yield from self._status(layer.digest)
        yield {"status": "writing manifest"}
        self._store.write(self._name, manifest)
        yield {"status": "success"}

    def _in_fewer_bits(self, layers: tuple[Layer, ...]) -> Generator[dict[str, Any], None, tuple[Layer, ...]]:
        """Yield the progress, and return the layers with the weights as a quantised GGUF file."""
        files = [layer for layer in layers if layer.media_type == MODEL_TYPE]
        rest = tuple(layer for layer in layers if layer.media_type not in (MODEL_TYPE, TENSOR_TYPE, JSON_TYPE))
        with contextlib.ExitStack() as stack:
            if files:
                path = self._store.blobs.path(files[0].digest)
            else:
                with writing():
                    path = self._store.views.make_temporary(Manifest(layers[0], layers))
                stack.callback(shutil.rmtree, path, ignore_errors=True)
            made = yield from self._quantised(path)
        return (made, *rest)

    def _quantised(self, path: Path) -> Generator[dict[str, Any], None, Layer]:
        """Yield the progress, and return the layer of the weights at `path` in fewer bits."""
        layer = yield from quantised(self._store, self._name, path, self._wanted.quantize, self._quantiser)
        self._made.add(layer.digest)
        return layer

    def _adapter_layers(self, layers: tuple[Layer, ...]) -> tuple[Layer, ...]:
        """Return the layers of the new adapter, which comes after those of the base; raise ApiError (400)."""
        if not self._adapters:
            return ()
        names = {path.rpartition("/")[2]: digest for path, digest in self._adapters.items()}
        if not {"adapter_config.json", "adapter_model.safetensors"} <= names.keys():
            raise bad_request(
                f"the adapter has {', '.join(map(shown, sorted(names)))}; it must have adapter_config.json and"
                " adapter_model.safetensors, as PEFT's save_pretrained writes them"
            )
        number = len({layer.name.split("/")[1] for layer in layers if layer.media_type == ADAPTER_TYPE and layer.name})
        return tuple(
            Layer(ADAPTER_TYPE, digest, _size(self._store, name, digest), f"{_ADAPTERS}/{number}/{name}")
            for name, digest in names.items()
        )

    @contextlib.contextmanager
    def _keeping(self, digests: Any) -> Iterator[None]:
        """Keep the blobs of the base and the adapters until the manifest names them; note which are there."""
        with self._store.keeping([*digests, *self._adapters.values()]):
            self._known = set(os.listdir(self._store.blobs.root))
            yield

    def _status(self, digest: Digest) -> Progress:
        """Yield what is said of a layer, once."""
        if digest not in self._told:
            self._told.add(digest)
            what = "using existing layer" if digest.file_name in self._known else "creating new layer"
            yield {"status": f"{what} {digest}"}


def _layers_of(store: LocalStore, files: dict[str, Digest]) -> tuple[Layer, ...]:
    """Return the layers of a GGUF file or of a folder's files; raise ApiError (400) in Ollama's words."""
    ggufs = [path for path, digest in files.items() if path.endswith(".gguf") or is_gguf(store.blobs.path(digest))]
    tensors = [path for path in files if path.endswith(".safetensors")]
    if ggufs and tensors:
        raise bad_request("mixed model file types: found both gguf and safetensors inputs")
    if len(ggufs) > 1 or (ggufs and len(files) > 1):
        raise bad_request("a GGUF model must be one file; merge its parts with llama.cpp's `gguf-split --merge`")
    if not ggufs and not tensors:
        raise bad_request("unknown type")
    if ggufs:
        digest = files[ggufs[0]]
        return (Layer(MODEL_TYPE, digest, _size(store, ggufs[0], digest)),)
    for path in files:
        if path.endswith(_UNSAFE):
            raise bad_request(f"{shown(path)} may run code and is not read; leave it out, or convert it to safetensors")
    return tuple(Layer(_type_of(path), digest, _size(store, path, digest), path) for path, digest in files.items())


def _files_of(model: Model) -> dict[str, Path]:
    """Return the files of a model in a folder by their names in it; raise ApiError (400) for a GGUF file in parts."""
    if not model.path.is_dir():
        if model.path.name.endswith(".gguf") and len({tensor.path for tensor in model.tensors}) > 1:
            raise bad_request("a GGUF model must be one file; merge its parts with llama.cpp's `gguf-split --merge`")
        return {model.path.name: model.path}
    patterns = ("*.safetensors", "*.json", "*.jinja", "*.model", "*.txt", "LICENSE", "*/*.jinja", "1_Pooling/*.json")
    found = {path for pattern in patterns for path in model.path.glob(pattern) if path.is_file()}
    return {str(path.relative_to(model.path)): path for path in sorted(found)}


def _type_of(name: str) -> str:
    return TENSOR_TYPE if name.endswith(".safetensors") else JSON_TYPE


def _size(store: LocalStore, path: str, digest: Digest) -> int:
    """Return the bytes of an uploaded blob; raise ApiError (400) where it is not there."""
    size = store.blobs.size(digest)
    if size is None:
        raise bad_request(f"blob not found for {shown(path)} (digest {digest})")
    return size


def _checked_name(text: str) -> Name:
    """Return a name; raise ApiError (400) for a text that is none, whatever files may be called so."""
    name = parse_name(text)
    if name is None:
        raise bad_request("invalid model name")
    return name


def _checked_files(files: dict[str, str]) -> dict[str, Digest]:
    """Return the digests by path; raise ApiError (400) before anything is looked at on disk."""
    if len(files) > MAX_FILES:
        raise bad_request(f"too many files: {len(files)} exceeds maximum {MAX_FILES}")
    for path in files:
        if not is_relative(path) or ":" in path:
            raise bad_request("file path must be relative")
    return {path: parse_digest(digest) for path, digest in files.items()}


@contextlib.contextmanager
def _readable(model: Model) -> Iterator[None]:
    """Turn a failure to read a model's files into a ModelError."""
    try:
        yield
    except OSError as e:
        raise ModelError(f"model {model.full_name} cannot be read: {e.strerror}; check its files") from e
