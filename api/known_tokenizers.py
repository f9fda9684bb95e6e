"""The tokenizers of the models in use, each made at its first use."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from ollampi.api.model import Model
from ollampi.api.text_encoder import TextEncoder
from ollampi.api.text_process import FarEncoder, TextProcess
from ollampi.api.text_tokenizer import Encoder, TextTokenizer
from ollampi.mpiruntime.errors import ModelError

KEPT = 32  # each is a process; one that goes ends when the last request that uses it does
_E = TypeVar("_E", bound=Encoder)


@dataclass
class _Slot:
    """The tokenizer of one content; who makes it holds the lock, and nobody waits but for the same."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    encoder: FarEncoder | None = None
    tokenizer: TextTokenizer | None = None


class Tokenizers:
    """The tokenizers that were used last, one per content of a model."""

    def __init__(self, process: TextProcess | None = None) -> None:
        self._process = process or TextProcess()
        self._known: dict[str, _Slot] = {}
        self._lock = threading.Lock()

    def get(self, model: Model) -> TextTokenizer:
        """Return the model's tokenizer, made at its first use and where its process ended; raise ModelError."""
        with self._lock:
            slot = self._known.pop(model.digest, _Slot())
            self._known[model.digest] = slot  # as the last
            if len(self._known) > KEPT:
                del self._known[next(iter(self._known))]
        with slot.lock:
            if slot.tokenizer is None or slot.encoder is None or not slot.encoder.alive:
                slot.encoder, slot.tokenizer = _made(self._process, model)
            return slot.tokenizer

    def summary(self, model: Model) -> dict[str, Any]:
        """Return the short parts of the content of a model's tokenizer; it need not be usable. Raise ModelError."""
        try:
            return self._process.summary(model.path, model.texts.file)
        except ModelError as e:
            raise ModelError(f"model {model.full_name}: {e}") from e


def check_tokenizer(model: Model) -> None:
    """Raise ModelError where a model's tokenizer cannot be used; it is made here, for a process that has no streams."""
    _fitting(model, lambda: TextEncoder(model.texts.tokenizer, model.texts.file))


def _made(process: TextProcess, model: Model) -> tuple[FarEncoder, TextTokenizer]:
    """Return the tokenizer of a model; raise ModelError."""
    encoder = _fitting(model, lambda: process.encoder(model.path, model.texts.file))
    return encoder, TextTokenizer(encoder, model.texts.bos_token, model.context_length)


def _fitting(model: Model, make: Callable[[], _E]) -> _E:
    """Return the encoder that `make` makes; raise ModelError where it has more tokens than the model."""
    try:
        encoder = make()
    except ModelError as e:
        raise ModelError(f"model {model.full_name}: {e}") from e
    size, largest = model.text_config.get("vocab_size"), encoder.facts.largest_id
    where = "vocab_size in config.json" if model.path.is_dir() else "the number of rows of its token_embd.weight"
    if type(size) is int and largest >= size:
        raise ModelError(
            f"model {model.full_name}: {model.texts.file} has a token with the id {largest}, and {where}"
            f" is {size}: they belong to different models, or a token was added to one alone; copy both"
        )
    return encoder
