"""Give the API tests a tiny model folder, an engine that answers by script, and a client."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import socket
import struct
import threading
import uuid
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from ollampi.api.app import create_app
from ollampi.api.engine_client import Done, Embedding, EngineError, Event, Tokens
from ollampi.api.settings import Settings
from ollampi.api.store import Store
from ollampi.api.text_tokenizer import TextTokenizer
from ollampi.mpiruntime import wire
from ollampi.mpiruntime.request import EmbedRequest, GenerateRequest, LoadedModel, ModelRef, Sample, TokenLogprob, Usage
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
USAGE = Usage(prompt_tokens=9, generated_tokens=2, load_ns=1_000_000, prompt_ns=50_000_000, decode_ns=150_000_000)


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
            if isinstance(event, Done):
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

    def loaded(self) -> list[LoadedModel]:
        return self.models

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
    return TextTokenizer(lambda: tokenizer_of(models_folder / "demo"), "", 4096, "tokenizer.json")


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


class FakeCoordinator:
    """The engine's end of the socket: a thread that records messages and answers by script.

    generate yields `tokens` one by one and is done, unless `silent`; then it waits for a cancel, as load does.
    """

    def __init__(self) -> None:
        self.address = f"unix:@ollampi-test-{uuid.uuid4().hex}"
        self.messages: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self.tokens: list[int] = []
        self.models: list[dict[str, Any]] = []
        self.samples: list[Sample] = []
        self.error: tuple[str, str] | None = None
        self.silent = False
        self.deaf = False  # to cancels and scrapes
        self.connections: list[socket.socket] = []
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(wire.unix_address(self.address))
        self._listener.listen()
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def expect(self, op: str, timeout_s: float = 5.0) -> dict[str, Any]:
        """Return the next message, which must be an `op`."""
        message = self.messages.get(timeout=timeout_s)
        assert message["op"] == op, message
        return message

    def send(self, number: int, *tokens: int, **event: Any) -> None:
        """Send an event about request `number` over the one connection: the next tokens, or whatever else."""
        event = event or {"kind": "tokens", "tokens": list(tokens), "logprobs": []}
        wire.send(self.connections[0], {"events": [{"id": number, **event}]})

    def hang_up(self) -> None:
        """Break every connection; new ones are still accepted."""
        while self.connections:
            with contextlib.suppress(OSError):  # the other side was faster
                self.connections.pop().shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """End all threads and sockets."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self.hang_up()
        for thread in self._threads:
            thread.join(5)
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.connections.append(connection)
            thread = threading.Thread(target=self._serve, args=(connection,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _serve(self, connection: socket.socket) -> None:
        with connection:
            try:
                while True:
                    message = wire.receive(connection)
                    self.messages.put(message)
                    for event in self._answers(message):
                        wire.send(connection, {"events": [{"id": message["id"], **event}]})
            except wire.Closed:
                return

    def _answers(self, message: dict[str, Any]) -> Iterator[dict[str, Any]]:
        op = message["op"]
        if self.error:
            yield {"kind": "error", "code": self.error[0], "message": self.error[1]}
        elif op == "loaded":
            yield {"kind": "loaded", "models": self.models}
        elif op == "metrics" and not self.deaf:
            yield {"kind": "metrics", "samples": self.samples}
        elif (op in ("cancel", "metrics") and self.deaf) or (op == "load" and self.silent):
            return
        elif op in ("load", "unload", "cancel"):
            yield {"kind": "done", "reason": op, "usage": vars(USAGE)}
        elif op == "embed":
            for place, prompt in enumerate(message["request"]["prompts"]):
                yield {"kind": "embedding", "place": place, "values": array("f", array("i", prompt)).tobytes()}
            if not self.silent:
                yield {"kind": "done", "reason": "stop", "usage": vars(USAGE)}
        else:
            for token in self.tokens:
                logprobs = [{"token": token, "logprob": -1.0, "top": [[3, -2.0]]}]
                yield {"kind": "tokens", "tokens": [token], "logprobs": logprobs}
            if not self.silent:
                yield {"kind": "done", "reason": "stop", "usage": vars(USAGE)}


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
