"""Give the API tests a tiny model folder, an engine that answers by script, and a client."""

from __future__ import annotations

import json
import os
import queue
import socket
import struct
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient
from support.clusters import a_cluster, a_placement
from support.coordinators import USAGE, FakeCoordinator
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from ollampi.api.app import create_app
from ollampi.api.engine_client import Departure, Done, Embedding, EngineError, Event, Loading, Placed, Tokens
from ollampi.api.settings import Settings
from ollampi.api.store.catalog import Store
from ollampi.api.text_encoder import TextEncoder
from ollampi.api.text_tokenizer import TextTokenizer
from ollampi.mpiruntime.cluster import Cluster, Wish
from ollampi.mpiruntime.request import (
    EmbedRequest,
    GenerateRequest,
    LoadedModel,
    ModelRef,
    Readiness,
    Sample,
    TokenLogprob,
    Usage,
)
from ollampi.mpiruntime.tokenizer_folder import tokenizer_of

SENTENCES = [
    "def hello(name): return 'Hello, ' + name",
    "The quick brown fox jumps over the lazy dog.",
    "Grüße aus Köln, 世界 und 🙂!",
] * 4
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIALS = ["<|end|>", "<|im_start|>", "<|im_end|>"]


def train_tokenizer() -> Tokenizer:
    """Return a byte-level BPE tokenizer that knows a few words."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(SENTENCES, trainer)
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in SPECIALS])
    return tokenizer


def safetensors_bytes(shapes: dict[str, list[int]], dtype: str = "F32", size: int = 4) -> bytes:
    """Return a safetensors file of zeros."""
    header, offset = {}, 0
    for name, shape in shapes.items():
        count = size
        for length in shape:
            count *= length
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, offset + count]}
        offset += count
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(offset)


def write_model(folder: Path, tokenizer: Tokenizer, chat_template: str | None = None, context: int = 64) -> Path:
    """Write a model folder and return it."""
    folder.mkdir(parents=True)
    config = {
        "model_type": "llama",
        "hidden_size": 8,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "max_position_embeddings": context,
        "vocab_size": tokenizer.get_vocab_size(),
        "eos_token_id": tokenizer.token_to_id("<|end|>"),
    }
    (folder / "config.json").write_text(json.dumps(config))
    tokenizer.save(str(folder / "tokenizer.json"))
    words: dict[str, Any] = {"eos_token": "<|end|>"}
    if chat_template is not None:
        words["chat_template"] = chat_template
    (folder / "tokenizer_config.json").write_text(json.dumps(words))
    (folder / "model.safetensors").write_bytes(safetensors_bytes({"embed": [400, 8], "norm": [8]}))
    return folder


class FakeStream:
    """A stream that yields scripted events and remembers being cancelled."""

    def __init__(self, events: list[Event | EngineError]) -> None:
        self._events: queue.SimpleQueue[Event | EngineError] = queue.SimpleQueue()
        for event in events:
            self._events.put(event)
        self.cancelled, self.closed = 0, False

    def __iter__(self) -> Iterator[Event]:
        while True:
            event = self._events.get(timeout=5)
            if isinstance(event, EngineError):
                raise event
            yield event
            if isinstance(event, Done | Placed):
                return

    def cancel(self, reason: str = "cancel") -> None:
        self.cancelled += 1
        self.reason = reason
        self._events.put(Done("cancel", USAGE))

    def close(self) -> None:
        self.closed = True
        self.cancel()


class FakeEngine:
    """An engine that answers every request with `events` and records what it was asked."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.events: list[Event | EngineError] = []
        self.refusal: Exception | None = None
        self.requests: list[GenerateRequest] = []
        self.embed_requests: list[EmbedRequest] = []
        self.streams: list[FakeStream] = []
        self.calls: list[tuple[Any, ...]] = []
        self.models: list[LoadedModel] = []
        self.samples: list[Sample] = []
        self.well: Readiness | EngineError = Readiness(True)
        self.asked = 0  # for readiness
        self.job: Cluster | Exception = a_cluster()
        self.placing: list[Event | EngineError] = [Loading(1, 2), Placed(a_placement())]
        self.wishes: list[Wish] = []

    def says(self, text: str, reason: str = "stop", logprobs: bool = False) -> None:
        """Script an answer, one token at a time."""
        ids = self.tokenizer.encode(text).ids
        entry = [TokenLogprob(0, -0.5, [(0, -0.5), (1, -1.5)])] if logprobs else []
        self.events = [Tokens([i], [TokenLogprob(i, e.logprob, e.top) for e in entry]) for i in ids]
        self.events.append(Done(reason, USAGE))

    def generate(self, request: GenerateRequest) -> FakeStream:
        if self.refusal:
            raise self.refusal
        self.requests.append(GenerateRequest.from_wire(request.to_wire()))
        self.streams.append(FakeStream(self.events))
        return self.streams[-1]

    def embeds(self, *vectors: list[float]) -> None:
        """Script the embeddings of the inputs; the last one comes first."""
        events = [Embedding(place, array("f", values)) for place, values in enumerate(vectors)]
        self.events = [*events[::-1], Done("stop", Usage(prompt_tokens=7, load_ns=1_000_000, prompt_ns=5))]

    def embed(self, request: EmbedRequest) -> FakeStream:
        if self.refusal:
            raise self.refusal
        self.embed_requests.append(EmbedRequest.from_wire(request.to_wire()))
        self.streams.append(FakeStream(self.events))
        return self.streams[-1]

    def load(
        self, model: ModelRef, context: int | None, keep_alive_s: float | None, timeout_s: float | None = None
    ) -> FakeStream:
        self.calls.append(("load", model.name, context, keep_alive_s))
        self.streams.append(FakeStream([Done("load", USAGE)]))
        return self.streams[-1]

    def unload(self, model: ModelRef) -> None:
        self.calls.append(("unload", model.name))

    def log_from(self, level: str) -> None:
        self.calls.append(("log_from", level))

    def unload_idle(self, model: ModelRef) -> None:
        if self.refusal:
            raise self.refusal
        self.calls.append(("unload idle", model.name))

    def place(self, model: ModelRef, wish: Wish) -> FakeStream:
        self.wishes.append(wish)
        self.streams.append(FakeStream(self.placing))
        return self.streams[-1]

    def cluster(self) -> Cluster:
        if isinstance(self.job, Exception):
            raise self.job
        return self.job

    def leave(self, graceful: bool, timeout_s: float) -> int:
        if self.refusal:
            raise self.refusal
        self.calls.append(("leave", graceful, timeout_s))
        return 0

    def take_out(self, rank: int, graceful: bool, timeout_s: float) -> Departure:
        if self.refusal:
            raise self.refusal
        self.calls.append(("take_out", rank, graceful, timeout_s))
        return Departure(2, ["demo:latest lies on node-0"])

    def take_in(self, rank: int) -> None:
        if self.refusal:
            raise self.refusal
        self.calls.append(("take_in", rank))

    def loaded(self) -> list[LoadedModel]:
        return self.models

    def readiness(self) -> Readiness:
        self.asked += 1
        if isinstance(self.well, EngineError):
            raise self.well
        return self.well

    def metrics(self) -> list[Sample]:
        if self.refusal:
            raise self.refusal
        return self.samples


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return train_tokenizer()


@pytest.fixture(scope="session")
def models_folder(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with `demo` (completes text), `chatty` (has a template) and `thinker` (tools, thinking)."""
    folder = tmp_path_factory.mktemp("models")
    write_model(folder / "demo", tokenizer)
    write_model(folder / "chatty", tokenizer, CHAT_TEMPLATE)
    thinker = CHAT_TEMPLATE + "{% if tools %}{{ tools | tojson }}{% endif %}{# <think> enable_thinking #}"
    write_model(folder / "thinker", tokenizer, thinker)
    return folder


@pytest.fixture
def text_tokenizer(models_folder: Path) -> TextTokenizer:
    return TextTokenizer(TextEncoder(lambda: tokenizer_of(models_folder / "demo"), "tokenizer.json"), "", 4096)


@pytest.fixture
def engine(tokenizer: Tokenizer) -> FakeEngine:
    """Return an engine that says "Hello, world"."""
    engine = FakeEngine(tokenizer)
    engine.says("Hello, world")
    return engine


@pytest.fixture
def store(models_folder: Path) -> Store:
    return Store([models_folder])


@pytest.fixture
def client(engine: FakeEngine, store: Store) -> FlaskClient:
    return create_app(engine, store, Settings()).test_client()


@pytest.fixture
def make_model(tokenizer: Tokenizer) -> Callable[..., Path]:
    return lambda folder, chat_template=None, context=64: write_model(folder, tokenizer, chat_template, context)


@pytest.fixture
def make_client(engine: FakeEngine) -> Callable[..., FlaskClient]:
    return lambda folder, **settings: create_app(engine, Store([folder]), Settings(**settings)).test_client()


@pytest.fixture
def coordinator() -> Iterator[FakeCoordinator]:
    coordinator = FakeCoordinator()
    yield coordinator
    coordinator.close()


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """Return a listening loopback socket that child processes may inherit."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        os.set_inheritable(listener.fileno(), True)
        yield listener
