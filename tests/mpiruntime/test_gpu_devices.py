"""A recorded step touches one device alone and waits for nothing: tensors on "meta", without numbers, tell both."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from drawn_model import TINY, Drawn

from ollampi.mpiruntime.communicator import Single
from ollampi.mpiruntime.decoder import Decoder
from ollampi.mpiruntime.decoder_layer import Cut
from ollampi.mpiruntime.gpu_arithmetic import OnGpu
from ollampi.mpiruntime.gpu_batch import answers_batch
from ollampi.mpiruntime.kv_cache import KVCache
from ollampi.mpiruntime.model_config import ModelConfig
from ollampi.mpiruntime.shard import Shard

META = torch.device("meta")  # whose tensors mix with no others, and of which no number can be asked


def logits(config: ModelConfig, quantize: str, kept: str) -> torch.Tensor | None:
    """Return the logits of a step of answers; there are no numbers."""
    comm = Single()
    weights = Drawn(torch.bfloat16, OnGpu(None), quantize, device=META)
    decoder = Decoder(weights, config, Cut(Shard(0, 1), comm, comm), 64)
    sizes = config.num_layers, 8, 4, config.num_kv_heads, config.head_dim
    cache = KVCache(*sizes, torch.bfloat16, kept, META, spare=True)
    batch = answers_batch(torch.empty(4, 4 + 2, dtype=torch.int64, device=META), 8)
    return decoder([batch], cache).logits


@pytest.mark.parametrize("kept", ["bfloat16", "float32", "int8"])
@pytest.mark.parametrize("quantize", ["none", "q8", "q4"])
def test_a_step_stays_on_its_device(quantize: str, kept: str) -> None:
    found = logits(TINY.config(), quantize, kept)
    assert found is not None
    assert (found.device, tuple(found.shape)) == (META, (4, TINY.vocab))


@pytest.mark.parametrize(
    "change", [{"qk_norm": True}, {"attention_cap": 5.0}, {"logit_cap": 3.0}, {"activation": "gelu_tanh"}], ids=str
)
def test_what_families_do_otherwise_stays_there_too(change: dict[str, object]) -> None:
    found = logits(replace(TINY.config(), **change), "none", "bfloat16")  # type: ignore[arg-type]
    assert found is not None
    assert found.device == META


def test_a_tensor_elsewhere_and_a_number_that_is_asked_for_are_seen() -> None:
    x = torch.ones(3, device=META)
    with pytest.raises(RuntimeError, match=r"same device|meta"):
        x + torch.ones(3)
    with pytest.raises(RuntimeError, match="meta"):
        int(x.sum())
