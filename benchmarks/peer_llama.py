"""llama.cpp as a contestant, through llama-cpp-python: `peer_llama.py FILE.gguf THREADS`. Needs the peers extra."""

from __future__ import annotations

import ctypes
import sys
import time
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
from contestant import Times, serve_turns
from numpy.typing import NDArray

STREAMS, CONTEXT, BATCH = 16, 1024, 512
_ERROR = 4  # of ggml_log_level

Entry = tuple[int, int, int, bool]  # token, position, sequence, whether its logits are wanted


@llama_cpp.llama_log_callback
def _keep_quiet(level: int, text: bytes, data: ctypes.c_void_p) -> None:
    """Print llama.cpp's errors only."""
    if level == _ERROR:
        print(text.decode(errors="replace"), end="", file=sys.stderr)


class Llama:
    """A model in llama.cpp; caches in fp16 and flash attention as it chooses."""

    def __init__(self, path: Path, threads: int) -> None:
        llama_cpp.llama_log_set(_keep_quiet, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        self._model = llama_cpp.llama_model_load_from_file(str(path).encode(), llama_cpp.llama_model_default_params())
        if self._model is None:
            raise RuntimeError(f"llama.cpp cannot load {path}; its messages are above")
        params = llama_cpp.llama_context_default_params()
        params.n_ctx, params.n_seq_max = STREAMS * CONTEXT, STREAMS
        params.n_batch = params.n_ubatch = BATCH
        params.n_threads = params.n_threads_batch = threads
        self._context = llama_cpp.llama_init_from_model(self._model, params)
        if self._context is None:
            raise RuntimeError(f"llama.cpp cannot make a context of {params.n_ctx} tokens; its messages are above")
        self._batch = llama_cpp.llama_batch_init(BATCH, 0, 1)
        self.vocab_size = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self._model))
        self.facts: dict[str, Any] = {"system": llama_cpp.llama_print_system_info().decode()}

    def answer(self, prompts: list[list[int]], tokens: int) -> Times:
        """Return when each of the likeliest tokens was there; one batch holds a token of every stream."""
        self._forget()
        times: Times = [[] for _ in prompts]
        logits = self._decode([entry for stream, prompt in enumerate(prompts) for entry in _entries(stream, prompt)])
        for step in range(tokens):
            found = logits.argmax(1).tolist()
            now = time.perf_counter()
            for stream in times:
                stream.append(now)
            if step < tokens - 1:
                logits = self._decode([(t, len(prompts[s]) + step, s, True) for s, t in enumerate(found)])
        return times

    def logits(self, tokens: list[int]) -> NDArray[np.float32]:
        """Return the logits [T, V] of all tokens of one sequence."""
        self._forget()
        return self._decode([(token, position, 0, True) for position, token in enumerate(tokens)]).copy()

    def _forget(self) -> None:
        """Empty the cache."""
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self._context), False)

    def _decode(self, entries: list[Entry]) -> NDArray[np.float32]:
        """Return the wanted logits [B, V], llama.cpp's own memory where one batch holds all entries."""
        pieces = [entries[first : first + BATCH] for first in range(0, len(entries), BATCH)]
        if len(pieces) == 1:
            return self._decode_batch(entries)
        return np.concatenate([self._decode_batch(piece).copy() for piece in pieces])

    def _decode_batch(self, entries: list[Entry]) -> NDArray[np.float32]:
        """Return the wanted logits [B, V] of one batch; they hold until the next one."""
        batch = self._batch
        batch.n_tokens = len(entries)
        for place, (token, position, sequence, wanted) in enumerate(entries):
            batch.token[place], batch.pos[place] = token, position
            batch.n_seq_id[place], batch.seq_id[place][0] = 1, sequence
            batch.logits[place] = wanted
        status = llama_cpp.llama_decode(self._context, batch)
        if status:
            raise RuntimeError(f"llama_decode returned {status} for {len(entries)} tokens")
        shape = sum(wanted for *_, wanted in entries), self.vocab_size
        if not shape[0]:
            return np.empty(shape, dtype=np.float32)
        return np.ctypeslib.as_array(llama_cpp.llama_get_logits(self._context), shape)


def _entries(sequence: int, prompt: list[int]) -> list[Entry]:
    """Return a prompt whose last logits are wanted."""
    return [(token, at, sequence, at == len(prompt) - 1) for at, token in enumerate(prompt)]


if __name__ == "__main__":
    serve_turns(Llama(Path(sys.argv[1]), int(sys.argv[2])))
