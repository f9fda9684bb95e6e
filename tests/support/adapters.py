"""Write LoRA adapters with PEFT, and merge them with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import LlamaForCausalLM

from support.checkpoints import reference


def write_adapter(base: Path, folder: Path, seed: int = 0, dtype: torch.dtype = torch.float32, **config: Any) -> Path:
    """Write an adapter with random matrices; return its folder."""
    torch.manual_seed(seed)
    model = get_peft_model(reference(base), LoraConfig(**{"r": 4, "lora_alpha": 8, **config}))
    for p in model.parameters():
        if p.requires_grad:
            torch.nn.init.normal_(p, std=0.1)
    model.to(dtype).save_pretrained(folder)
    return folder


def merged_by_peft(base: Path, *adapters: Path) -> LlamaForCausalLM:
    """Return the model in fp32 with adapters merged in turn."""
    model: Any = reference(base)
    for adapter in adapters:
        model = PeftModel.from_pretrained(model, adapter).merge_and_unload()
    merged: LlamaForCausalLM = model
    return merged
