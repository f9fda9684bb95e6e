"""From the GGUF files that the tests write llama.cpp computes what transformers does from the models.

So what the other tests hold our reading against is right. Needs the peers extra.
"""

from __future__ import annotations

import ctypes
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.checkpoints import FAMILIES, PROMPT, write_checkpoint
from support.family_models import VARIANTS, outputs, write_model
from support.gguf_files import ARCHITECTURES, write_gguf

llama_cpp = pytest.importorskip("llama_cpp", reason="needs the peers extra")

CONTEXT = 32
CASES: list[tuple[str, dict[str, Any]]] = [
    *(("llama", {"family": family}) for family in FAMILIES),
    *(case for case in VARIANTS if case != ("phi3", {"sliding_window": 8})),  # which llama.cpp has no windows for
]


@llama_cpp.llama_log_callback
def _keep_quiet(level: int, text: bytes, data: ctypes.c_void_p) -> None:
    pass


def computed(path: Path, tokens: list[int], width: int, encoder: bool) -> torch.Tensor:
    """Return llama.cpp's logits [T, V], or the hidden states [T, D] of an encoder."""
    llama_cpp.llama_log_set(_keep_quiet, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    model = llama_cpp.llama_model_load_from_file(str(path).encode(), llama_cpp.llama_model_default_params())
    assert model is not None, path
    params = llama_cpp.llama_context_default_params()
    params.n_ctx = params.n_batch = params.n_ubatch = CONTEXT
    params.type_k = params.type_v = params.flash_attn_type = 0  # fp32, and none
    params.embeddings, params.pooling_type = encoder, 0
    context = llama_cpp.llama_init_from_model(model, params)
    batch = llama_cpp.llama_batch_init(len(tokens), 0, 1)
    batch.n_tokens = len(tokens)
    for i, token in enumerate(tokens):
        batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.seq_id[i][0], batch.logits[i] = token, i, 1, 0, 1
    assert (llama_cpp.llama_encode if encoder else llama_cpp.llama_decode)(context, batch) == 0
    row = llama_cpp.llama_get_embeddings_ith if encoder else llama_cpp.llama_get_logits_ith
    rows = [np.ctypeslib.as_array(row(context, i), shape=(width,)).copy() for i in range(len(tokens))]
    llama_cpp.llama_batch_free(batch)
    llama_cpp.llama_free(context)
    llama_cpp.llama_model_free(model)
    return torch.from_numpy(np.stack(rows))


@pytest.mark.parametrize(
    ("model_type", "changes"), CASES, ids=lambda v: v if isinstance(v, str) else "-".join(map(str, v))
)
def test_llama_cpp_computes_what_transformers_does(tmp_path: Path, model_type: str, changes: dict[str, Any]) -> None:
    if "family" in changes:
        folder = write_checkpoint(tmp_path / "m", **FAMILIES[changes["family"]])
    else:
        folder = write_model(tmp_path / "m", model_type, **changes)
    config = json.loads((folder / "config.json").read_text())
    vocab = {f"{ARCHITECTURES[model_type]}.vocab_size": config["vocab_size"], "tokenizer.ggml.model": "none"}
    write_gguf(tmp_path / "m.gguf", folder, extra=vocab)
    encoder, tokens = model_type == "bert", [token % 100 for token in PROMPT]
    found = computed(tmp_path / "m.gguf", tokens, config["hidden_size" if encoder else "vocab_size"], encoder)
    rounded = model_type.startswith("gemma") or encoder  # its GELU is a table of fp16
    torch.testing.assert_close(found, outputs(folder), rtol=0, atol=1e-2 if rounded else 1e-5)
