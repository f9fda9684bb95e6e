"""From the GGUF files that the tests write llama.cpp computes what transformers does from the models.

So what the other tests hold our reading against is right. Needs the peers extra.
"""

from __future__ import annotations

import ctypes
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from support.checkpoints import PROMPT, reference_hidden, reference_logits, write_checkpoint
from support.gguf_files import ARCHITECTURES, MODELS, write_gguf
from support.vocabularies import byte_folder

from ollampi.mpiruntime.gguf_convert import convert

llama_cpp = pytest.importorskip("llama_cpp", reason="needs the peers extra")

CONTEXT = 32
CASES = [model for model in MODELS if model not in ("mistral", "phi3")]  # which it gives no windows


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


@pytest.mark.parametrize("model", CASES)
def test_llama_cpp_computes_what_transformers_does(tmp_path: Path, model: str) -> None:
    longer = {"max_position_embeddings": 2048, "original_max_position_embeddings": 1024} if model == "phi4" else {}
    folder = write_checkpoint(tmp_path / "m", **{**MODELS[model], **longer})
    config = json.loads((folder / "config.json").read_text())
    vocab = {f"{ARCHITECTURES[config['model_type']]}.vocab_size": config["vocab_size"], "tokenizer.ggml.model": "none"}
    write_gguf(tmp_path / "m.gguf", folder, extra=vocab)
    encoder = model == "bert"
    expected = (reference_hidden if encoder else reference_logits)(folder, PROMPT)
    found = computed(tmp_path / "m.gguf", PROMPT, expected.shape[1], encoder)
    rounded = model.startswith("gemma") or encoder  # its GELU is a table of fp16
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-2 if rounded else 1e-4)


@pytest.mark.parametrize("model", ["llama3", "biases", "mixtral", "qwen3", "gemma2", "gemma3", "phi4"])
def test_from_what_is_converted_llama_cpp_computes_the_same(tmp_path: Path, model: str) -> None:
    longer = {"max_position_embeddings": 2048, "original_max_position_embeddings": 1024} if model == "phi4" else {}
    folder = byte_folder(write_checkpoint(tmp_path / "m", **{**MODELS[model], **longer, "vocab_size": 400}))
    convert(folder, tmp_path / "m.gguf", lambda done, total: None)
    expected = reference_logits(folder, PROMPT)
    found = computed(tmp_path / "m.gguf", PROMPT, expected.shape[1], False)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-2 if model.startswith("gemma") else 1e-4)
