"""Write the weights of a model that is being made as a GGUF file of fewer bits, and tell how far that is."""

from __future__ import annotations

import contextlib
import os
import queue
import threading
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ollampi.api.errors import bad_request, public
from ollampi.api.model import read_model
from ollampi.api.names import Name
from ollampi.api.store.files import writing
from ollampi.api.store.local import LocalStore
from ollampi.api.store.manifest import MODEL_TYPE, Layer
from ollampi.mpiruntime.errors import ModelError

Tell = Callable[[int, int], None]  # bytes that are done, and all


@dataclass(frozen=True)
class Quantiser:
    """What writes GGUF files: `convert` one of a model folder, `requantise` one of another, at a level such as q4_K_M.

    Both get the source, the target, and at last what they tell their progress; they raise ModelError and OSError, and
    end with whatever the latter raises.
    """

    convert: Callable[[Path, Path, Tell], None]
    requantise: Callable[[Path, Path, str, Tell], None]


class _Stopped(Exception):
    """Nobody waits for the result any more."""


def quantised(
    store: LocalStore, name: Name, source: Path, level: str, quantiser: Quantiser | None
) -> Generator[dict[str, Any], None, Layer]:
    """Yield the progress, and return the layer of the new file; `source` is a GGUF file or a model folder.

    Raise ApiError: 400 where the source cannot be quantised so. Closing the generator stops the work.
    """
    if quantiser is None:
        raise bad_request(f"weights cannot be quantised to {level!r:.40} here; leave quantize out")
    with _told_to_client(source), store.blobs.temporary() as target, store.blobs.temporary() as whole:
        kind = read_model(name, source).details["quantization_level"]
        if source.is_dir():
            yield from _running(partial(quantiser.convert, source, whole), {"status": "converting model"})
            source = whole
        line = {"status": f"quantizing {kind} model to {level:.40}"}
        yield from _running(partial(quantiser.requantise, source, target, level), line)
        digest = store.blobs.adopt(target)
    return Layer(MODEL_TYPE, digest, os.stat(store.blobs.path(digest)).st_size)


@contextlib.contextmanager
def _told_to_client(source: Path) -> Iterator[None]:
    """Turn what is wrong with a source into an ApiError without its path."""
    with writing():
        try:
            yield
        except ModelError as e:
            raise bad_request(public(str(e).replace(f"{source.parent}/", ""))) from e


def _running(work: Callable[[Tell], None], line: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield how far `work` is, which runs in a thread; raise what it raises."""
    told: queue.SimpleQueue[tuple[int, int] | Exception | None] = queue.SimpleQueue()
    stopped = threading.Event()

    def tell(done: int, total: int) -> None:
        """Take (bytes done, bytes in all); raise _Stopped where nobody waits any more."""
        if stopped.is_set():
            raise _Stopped
        told.put((done, total))

    def run() -> None:
        """Do the work and tell how it ended."""
        try:
            work(tell)
            told.put(None)
        except Exception as e:
            told.put(e)

    thread = threading.Thread(target=run, name="quantise", daemon=True)
    thread.start()
    try:
        yield line
        while (news := _latest(told)) is not None:
            if isinstance(news, Exception):
                raise news
            yield {**line, "total": news[1], "completed": news[0]}
    finally:
        stopped.set()
        thread.join()


def _latest(told: queue.SimpleQueue[tuple[int, int] | Exception | None]) -> tuple[int, int] | Exception | None:
    """Return the next news, without the progress that newer one follows."""
    news = told.get()
    with contextlib.suppress(queue.Empty):
        while isinstance(news, tuple):
            later = told.get_nowait()
            if not isinstance(later, tuple):
                told.put(later)  # nothing comes behind the end
                break
            news = later
    return news
