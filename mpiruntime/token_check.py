"""Refuse requests whose tokens a model does not have."""

from __future__ import annotations

from ollampi.mpiruntime.errors import RequestError
from ollampi.mpiruntime.model_config import ModelConfig
from ollampi.mpiruntime.request import GenerateRequest


def check_tokens(config: ModelConfig, request: GenerateRequest) -> None:
    """Raise RequestError for an empty prompt, a token that the model does not have, or a model without a head."""
    if not config.has_head:
        raise RequestError("the model makes embeddings only; ask for these, or use a model with an output head")
    tokens = request.prompt
    if not tokens:
        raise RequestError("the prompt has no tokens; send at least one character")
    strange = [t for t, _ in request.sampling.logit_bias if not 0 <= t < config.vocab_size]
    if strange:
        raise RequestError(f"logit_bias names token {strange[0]}; the model's tokens are 0 to {config.vocab_size - 1}")
    if not 0 <= min(tokens) <= max(tokens) < config.vocab_size:
        raise RequestError(f"the prompt has token {max(tokens)}, the model's vocabulary {config.vocab_size}")
